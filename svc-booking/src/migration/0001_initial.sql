CREATE TABLE booking (
    id uuid PRIMARY KEY,
    fan uuid NOT NULL,
    concert uuid NOT NULL,
    -- The hold that it books. NULL once it failed: the hold may be booked again.
    hold uuid UNIQUE,
    -- The idempotency key, and a hash of what was asked. NULL once it failed: the key is free again.
    request_key text,
    fingerprint bytea NOT NULL,
    -- 1 paying, 3 confirmed, 4 failed, 5 cancelled. In no index: the confirm stays a HOT update.
    state smallint NOT NULL,
    lease_epoch integer NOT NULL,
    lease_until timestamptz NOT NULL,
    -- The seats as JSON, as they were sold: ordinal, id, labels, price.
    seats text NOT NULL,
    total bigint NOT NULL CHECK (total >= 0),
    refunded bigint NOT NULL DEFAULT 0 CHECK (refunded BETWEEN 0 AND total),
    -- 1 insufficient balance, 2 declined, 3 unavailable, 4 timed out.
    failure smallint,
    cancel_key text,
    create_time timestamptz NOT NULL,
    UNIQUE (fan, request_key)
)
--postgres: WITH (fillfactor = 80)
;
CREATE UNIQUE INDEX booking_cancel_key ON booking (fan, cancel_key) WHERE cancel_key IS NOT NULL;

-- Who owns a seat. A row is there while a booking has the seat: the primary key is what keeps it from being sold twice.
CREATE TABLE claim (
    concert uuid NOT NULL,
    seat integer NOT NULL,
    booking uuid NOT NULL,
    PRIMARY KEY (concert, seat)
);

-- How many seats of a concert a fan has, and may have.
CREATE TABLE fan_seats (
    concert uuid NOT NULL,
    fan uuid NOT NULL,
    seats integer NOT NULL,
    seat_limit integer NOT NULL,
    PRIMARY KEY (concert, fan),
    CHECK (seats BETWEEN 0 AND seat_limit)
)
--postgres: WITH (fillfactor = 80)
;

-- Money that is to be given back for a cancelled booking.
CREATE TABLE refund (
    id uuid PRIMARY KEY,
    booking uuid NOT NULL REFERENCES booking (id),
    amount bigint NOT NULL CHECK (amount > 0),
    is_done boolean NOT NULL,
    create_time timestamptz NOT NULL
);
CREATE INDEX refund_to_do ON refund (id) WHERE NOT is_done;
CREATE INDEX refund_booking ON refund (booking);
