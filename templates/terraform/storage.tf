resource "google_storage_bucket" "job" {
  name                        = var.bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # Nothing here is worth restoring, and temporary files may hold patients' data.
  versioning {
    enabled = false
  }
  soft_delete_policy {
    retention_duration_seconds = 0
  }

  # Only temporary files: each new worker reads the staged ones for as long as the job runs.
  lifecycle_rule {
    condition {
      age            = 30
      matches_prefix = ["temp/", "builds/"]
    }
    action {
      type = "Delete"
    }
  }

  depends_on = [google_project_service.required]
}

resource "google_artifact_registry_repository" "images" {
  repository_id = "rehab-tracking"
  location      = var.region
  format        = "DOCKER"
  description   = "Images of the job and of the HTTP API."

  depends_on = [google_project_service.required]
}
