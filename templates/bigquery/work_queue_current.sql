-- The newest version of each key, unless it, or the patient's newest consent, hides it.
WITH newest AS (
  SELECT * FROM `{dataset}.work_queue` WHERE TRUE
  QUALIFY ROW_NUMBER() OVER (PARTITION BY patient_id, item_id ORDER BY version DESC) = 1
),
consent AS (
  SELECT patient_id, visible FROM `{dataset}.consents` WHERE TRUE
  QUALIFY ROW_NUMBER() OVER (PARTITION BY patient_id ORDER BY version DESC) = 1
)
SELECT newest.* FROM newest
WHERE newest.visible AND newest.patient_id NOT IN (SELECT patient_id FROM consent WHERE NOT visible)
