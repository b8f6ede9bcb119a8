-- Why: files that are made from a published version's after its publication, further formats and deltas, as the
-- version's detail and the downloads by name and by digest read them. Derived from the facts derived.*: one row for
-- each, also while it is to be made and where that failed; removed ones have none. Before this release there were none.

-- +goose Up
CREATE TABLE derived (
    image      text COLLATE "C" NOT NULL,
    version    text COLLATE "C" NOT NULL,
    variant    text COLLATE "C" NOT NULL, -- amd64.virtual-machine.default
    format     text COLLATE "C" NOT NULL, -- disk.vmdk
    state      text   NOT NULL,           -- requested, made, failed, skipped
    digest     text COLLATE "C" NOT NULL, -- sha256:<64 hex>; '' until it is made
    size_bytes bigint NOT NULL,
    media_type text   NOT NULL,
    made_at    timestamptz,               -- NULL until it is made
    sequence   bigint NOT NULL,           -- of its last fact
    derived    jsonb  NOT NULL,           -- events.Derived
    PRIMARY KEY (image, version, variant, format)
);
CREATE INDEX derived_digest ON derived (digest) WHERE state = 'made';
