-- Why: a withdrawn version keeps its rows, so that its URLs say why it is gone, and is in no list. Derived from
-- version.withdrawn and version.restored. What was published before isn't withdrawn, so there is nothing to fill in.

-- +goose Up
-- withdrawn_*: NULL for a version that is published.
ALTER TABLE versions
    ADD COLUMN withdrawn_at     timestamptz,
    ADD COLUMN withdrawn_by     text,
    ADD COLUMN withdrawn_reason text;

-- The lists read only what is published.
DROP INDEX versions_newest;
CREATE INDEX versions_newest ON versions (image, published_at DESC, sequence DESC) WHERE withdrawn_at IS NULL;
