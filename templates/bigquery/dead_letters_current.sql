-- The newest failure of each dead letter: a replay adds a row that says when, and if it fails again another one
-- with one more attempt.
SELECT * FROM `{dataset}.dead_letters` WHERE TRUE
QUALIFY ROW_NUMBER() OVER (PARTITION BY dead_letter_id ORDER BY failed_at DESC, attempts DESC, replayed_at DESC) = 1
