-- Why: what a publisher says of a version beside its names stands in its products: the release's title and codename, until when it
-- is supported and whether at all, what a host must meet. Versions published before said none of it.

-- +goose Up
-- supported: NULL where the publisher was silent. support_eol: YYYY-MM-DD. requirements: an object of texts.
ALTER TABLE versions
    ADD COLUMN release_title text    NOT NULL DEFAULT '',
    ADD COLUMN codename      text    NOT NULL DEFAULT '',
    ADD COLUMN support_eol   text    NOT NULL DEFAULT '',
    ADD COLUMN supported     boolean,
    ADD COLUMN requirements  jsonb   NOT NULL DEFAULT '{}';
