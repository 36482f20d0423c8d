# Made from the same files as `python -m pipeline.provision`, with the same result.
locals {
  schemas = "${path.module}/../bigquery"
  tables  = { for file in fileset(local.schemas, "*.json") : trimsuffix(file, ".json") => jsondecode(file("${local.schemas}/${file}")) }
  views = {
    for file in fileset(local.schemas, "*_current.sql") :
    trimsuffix(file, "_current.sql") => replace(file("${local.schemas}/${file}"), "{dataset}", local.dataset)
  }
  dataset = "${var.project}.rehab_tracking"
}

resource "google_bigquery_dataset" "rehab_tracking" {
  dataset_id = "rehab_tracking"
  location   = var.dataset_location

  # Replaces BigQuery's default list, which lets every viewer of the project read patients' data.
  access {
    role          = "OWNER"
    special_group = "projectOwners"
  }

  lifecycle {
    # The entries for the views are added below.
    ignore_changes = [access]
  }

  depends_on = [google_project_service.required]
}

resource "google_bigquery_table" "tables" {
  for_each = local.tables

  dataset_id          = google_bigquery_dataset.rehab_tracking.dataset_id
  table_id            = each.key
  description         = each.value.description
  schema              = jsonencode(each.value.schema)
  clustering          = each.value.clustering
  deletion_protection = true

  time_partitioning {
    type  = "DAY"
    field = each.value.partition_field
  }
}

resource "google_bigquery_table" "views" {
  for_each = local.views

  dataset_id          = google_bigquery_dataset.rehab_tracking.dataset_id
  table_id            = "${each.key}_current"
  description         = "The current rows of ${each.key}."
  deletion_protection = false

  # A hash of query and schema: pipeline.provision compares it, and a view with `*` is replaced when its
  # table gets new columns.
  labels = {
    definition = substr(sha256("${each.value}${file("${local.schemas}/${each.key}.json")}"), 0, 32)
  }

  view {
    query          = each.value
    use_legacy_sql = false
  }

  depends_on = [google_bigquery_table.tables]
}

# A reader of a view needs no right to the tables, and should have none: they also hold what consents hide.
resource "google_bigquery_dataset_access" "views" {
  for_each = local.views

  dataset_id = google_bigquery_dataset.rehab_tracking.dataset_id

  view {
    project_id = var.project
    dataset_id = google_bigquery_dataset.rehab_tracking.dataset_id
    table_id   = google_bigquery_table.views[each.key].table_id
  }
}
