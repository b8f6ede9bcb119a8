-- Why: the simplestreams documents that Incus and LXD clients read, kept as ready bytes, and what they are made of. Derived from
-- the facts version.published, image.described, alias.moved and alias.removed; see projections/streams.
--
-- Names compare by bytes (COLLATE "C"), so that their order is the same on every server.

-- +goose Up
CREATE TABLE position (
    only_row   boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    sequence   bigint      NOT NULL, -- of the last event applied; 0 before the first
    stream     text        NOT NULL, -- identity of the stream it counts in; '' before the first start
    updated_at timestamptz NOT NULL  -- when it moved last: for people, not derived from events
);

-- changed_*: the last fact that changed what the public sees of the image; 0 and NULL where none did.
CREATE TABLE images (
    name             text COLLATE "C" PRIMARY KEY,
    visibility       text        NOT NULL,
    os               text        NOT NULL,
    release          text        NOT NULL,
    changed_sequence bigint      NOT NULL,
    changed_at       timestamptz
);

-- keyed_at: the second in the version's key, unique in its image: two publications may fall into one second.
CREATE TABLE versions (
    image        text COLLATE "C" NOT NULL,
    version      text COLLATE "C" NOT NULL,
    os           text        NOT NULL,
    release      text        NOT NULL,
    keyed_at     timestamptz NOT NULL,
    published_at timestamptz NOT NULL,
    sequence     bigint      NOT NULL,
    PRIMARY KEY (image, version),
    UNIQUE (image, keyed_at)
);

-- One row for each variant. Without a fingerprint clients can't use it, and it is not listed.
CREATE TABLE products (
    image               text COLLATE "C" NOT NULL,
    version             text COLLATE "C" NOT NULL,
    architecture        text COLLATE "C" NOT NULL,
    type                text COLLATE "C" NOT NULL,
    flavour             text COLLATE "C" NOT NULL,
    fingerprint         text   NOT NULL,
    metadata_format     text   NOT NULL,
    metadata_sha256     text   NOT NULL,
    metadata_size_bytes bigint NOT NULL,
    root_format         text   NOT NULL,
    root_sha256         text   NOT NULL,
    root_size_bytes     bigint NOT NULL,
    PRIMARY KEY (image, version, architecture, type, flavour)
);

-- A removed alias stays as a row without a version: its removal is a change of the documents.
CREATE TABLE aliases (
    image            text COLLATE "C" NOT NULL,
    alias            text COLLATE "C" NOT NULL,
    version          text COLLATE "C" NOT NULL,
    changed_sequence bigint      NOT NULL,
    changed_at       timestamptz NOT NULL,
    PRIMARY KEY (image, alias)
);

-- The documents as they are served. sequence, updated_at: the last fact that shows in them.
CREATE TABLE documents (
    path       text COLLATE "C" PRIMARY KEY,
    body       bytea       NOT NULL,
    etag       text        NOT NULL,
    sequence   bigint      NOT NULL,
    updated_at timestamptz
);
