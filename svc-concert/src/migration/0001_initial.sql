CREATE TABLE venue (
    id uuid PRIMARY KEY,
    organizer uuid NOT NULL,
    display_name text NOT NULL,
    time_zone text NOT NULL,
    -- The sections as JSON: written once, read whole, never searched.
    layout text NOT NULL,
    create_time timestamptz NOT NULL
);

CREATE TABLE concert (
    id uuid PRIMARY KEY,
    organizer uuid NOT NULL,
    venue uuid NOT NULL REFERENCES venue (id),
    title text NOT NULL,
    description text NOT NULL,
    genre text NOT NULL,
    start_time timestamptz NOT NULL,
    end_time timestamptz NOT NULL,
    sale_open_time timestamptz NOT NULL,
    sale_close_time timestamptz NOT NULL,
    -- Minor units by section, as JSON.
    prices text NOT NULL,
    max_seats_per_fan smallint NOT NULL CHECK (max_seats_per_fan BETWEEN 1 AND 10),
    -- 1 draft, 2 published, 3 cancelled.
    state smallint NOT NULL CHECK (state BETWEEN 1 AND 3),
    -- Whether booking was told that it may book. Never true for a cancelled concert.
    has_sale_begun boolean NOT NULL,
    -- What booking said was left, and when it counted.
    unbooked_places bigint,
    count_time timestamptz,
    version bigint NOT NULL,
    create_time timestamptz NOT NULL,
    CHECK (start_time < end_time),
    CHECK (sale_open_time < sale_close_time),
    CHECK (state <> 3 OR NOT has_sale_begun)
);

CREATE INDEX concert_by_start ON concert (start_time, id) WHERE state = 2;
CREATE INDEX concert_by_organizer ON concert (organizer, id);
