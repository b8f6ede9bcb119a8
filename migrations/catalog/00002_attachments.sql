-- Why: files of a version as a whole, such as SBOMs, signatures and release notes, as the downloads by name and
-- by digest read them. Derived from version.published. What was published before has none, so there is nothing
-- to fill in.

-- +goose Up
CREATE TABLE attachments (
    image      text COLLATE "C" NOT NULL,
    version    text COLLATE "C" NOT NULL,
    name       text COLLATE "C" NOT NULL, -- sbom.spdx.json
    digest     text COLLATE "C" NOT NULL, -- sha256:<64 hex>
    size_bytes bigint NOT NULL,
    media_type text   NOT NULL,
    PRIMARY KEY (image, version, name)
);
CREATE INDEX attachments_digest ON attachments (digest);
