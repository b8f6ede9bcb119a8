-- Why: a withdrawn version is not listed, and when it is restored it is listed under the key that it had. Derived from
-- version.withdrawn and version.restored. What was published before isn't withdrawn, so there is nothing to fill in.

-- +goose Up
-- changed_*: the last withdrawal or restoration; 0 and NULL where there was none.
ALTER TABLE versions
    ADD COLUMN withdrawn        boolean NOT NULL DEFAULT false,
    ADD COLUMN changed_sequence bigint  NOT NULL DEFAULT 0,
    ADD COLUMN changed_at       timestamptz;
