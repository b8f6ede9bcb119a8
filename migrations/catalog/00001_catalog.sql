-- Why: the catalog of published images, as GET /api/images and the downloads read it. Derived from the
-- facts version.published, image.described, alias.moved and alias.removed; see projections/catalog.
--
-- Names compare by bytes (COLLATE "C"), so that pages and indexes are the same on every server, whatever
-- its locale or its C library's version.

-- +goose Up
CREATE TABLE position (
    only_row   boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    sequence   bigint      NOT NULL, -- of the last event applied; 0 before the first
    stream     text        NOT NULL, -- identity of the stream it counts in; '' before the first start
    updated_at timestamptz NOT NULL  -- when it moved last: for people, not derived from events
);

CREATE TABLE images (
    name        text COLLATE "C" PRIMARY KEY,
    os          text        NOT NULL,
    release     text        NOT NULL,
    description text        NOT NULL,
    visibility  text        NOT NULL, -- public, private
    flavours    text[]      NOT NULL, -- of all its versions, sorted
    created_at  timestamptz NOT NULL, -- time of its first fact
    updated_at  timestamptz NOT NULL, -- time of its last fact
    sequence    bigint      NOT NULL  -- of its last fact
);

CREATE TABLE versions (
    image        text COLLATE "C" NOT NULL,
    version      text COLLATE "C" NOT NULL,
    published_at timestamptz NOT NULL,
    published_by text        NOT NULL,
    upload_id    text        NOT NULL,
    job_id       text        NOT NULL,
    sequence     bigint      NOT NULL, -- of version.published
    manifest     jsonb       NOT NULL, -- events.Manifest
    PRIMARY KEY (image, version)
);
-- Newest first; two publications of one moment in the order of their events.
CREATE INDEX versions_newest ON versions (image, published_at DESC, sequence DESC);

CREATE TABLE formats (
    image      text COLLATE "C" NOT NULL,
    version    text COLLATE "C" NOT NULL,
    variant    text COLLATE "C" NOT NULL, -- amd64.virtual-machine.default
    format     text COLLATE "C" NOT NULL,
    digest     text COLLATE "C" NOT NULL, -- sha256:<64 hex>
    size_bytes bigint NOT NULL,
    media_type text   NOT NULL,
    PRIMARY KEY (image, version, variant, format)
);
CREATE INDEX formats_digest ON formats (digest);

CREATE TABLE aliases (
    image    text COLLATE "C" NOT NULL,
    alias    text COLLATE "C" NOT NULL,
    version  text COLLATE "C" NOT NULL,
    moved_at timestamptz NOT NULL,
    sequence bigint      NOT NULL, -- of alias.moved
    PRIMARY KEY (image, alias)
);
CREATE INDEX aliases_version ON aliases (image, version);
