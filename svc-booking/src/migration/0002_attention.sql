-- A refund that is refused waits before it is tried again, so that it keeps no other from being made.
ALTER TABLE refund ADD COLUMN tries integer NOT NULL DEFAULT 0;
-- NULL: at once.
ALTER TABLE refund ADD COLUMN next_try_time timestamptz;
-- Why an operator must look at a booking that is PAYING. NULL: no need to.
ALTER TABLE booking ADD COLUMN attention text;
