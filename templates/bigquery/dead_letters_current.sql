-- The newest failure of each dead letter: a replay that fails again adds a row with one more attempt.
SELECT * FROM `{dataset}.dead_letters` WHERE TRUE
QUALIFY ROW_NUMBER() OVER (PARTITION BY dead_letter_id ORDER BY failed_at DESC, attempts DESC) = 1
