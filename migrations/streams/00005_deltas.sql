-- Why: clients that have an earlier version of an image fetch a delta in place of the whole root. Derived from derived.made and
-- derived.removed, of deltas alone; see projections/streams.

-- +goose Up
-- variant: architecture, type and flavour as the fact has them, one word. base_sha256: the root of base_version that it starts from.
-- A removed delta stays as a row, like a removed alias: its removal is a change of the documents.
CREATE TABLE deltas (
    image            text COLLATE "C" NOT NULL,
    version          text COLLATE "C" NOT NULL,
    variant          text COLLATE "C" NOT NULL,
    format           text COLLATE "C" NOT NULL,
    sha256           text        NOT NULL,
    size_bytes       bigint      NOT NULL,
    target_sha256    text        NOT NULL,
    base_version     text COLLATE "C" NOT NULL,
    base_sha256      text        NOT NULL,
    removed          boolean     NOT NULL,
    changed_sequence bigint      NOT NULL,
    changed_at       timestamptz NOT NULL,
    PRIMARY KEY (image, version, variant, format)
);
