# Add its value by hand, so that no state file holds it.
resource "google_secret_manager_secret" "jwt" {
  secret_id = "rehab-api-jwt"

  replication {
    user_managed {
      replicas {
        location = var.region
      }
    }
  }

  depends_on = [google_project_service.required]
}

resource "google_cloud_run_v2_service" "api" {
  count = var.api_image == null ? 0 : 1

  name                = "rehab-api"
  location            = var.region
  ingress             = var.api_ingress
  deletion_protection = false

  template {
    service_account                  = google_service_account.api.email
    max_instance_request_concurrency = 80

    scaling {
      min_instance_count = var.api_min_instances
      max_instance_count = 10
    }

    containers {
      image = var.api_image

      resources {
        limits = { cpu = "1", memory = "1Gi" }
        # CPU between requests too, because the API observes the job all the time.
        cpu_idle = false
      }

      ports {
        container_port = 4000
      }

      env {
        name  = "REHAB_PRIMARY_TOPIC"
        value = google_pubsub_topic.topics["events-primary"].id
      }
      env {
        name  = "REHAB_SECONDARY_TOPIC"
        value = google_pubsub_topic.topics["events-secondary"].id
      }
      # Cloud Run has no disk that outlives an instance, so no event may be accepted that waits on disk only.
      env {
        name  = "REHAB_QUEUE_DURABLE"
        value = "false"
      }
      dynamic "env" {
        for_each = var.job_id == null ? {} : { JOB_ID = var.job_id, PROJECT = var.project, REGION = var.region }
        content {
          name  = "REHAB_${env.key}"
          value = env.value
        }
      }
      env {
        name = "REHAB_JWT_SECRET"
        value_source {
          secret_key_ref {
            secret  = google_secret_manager_secret.jwt.secret_id
            version = "latest"
          }
        }
      }

      startup_probe {
        period_seconds    = 5
        failure_threshold = 24
        http_get {
          path = "/readyz"
        }
      }
      liveness_probe {
        http_get {
          path = "/healthz"
        }
      }
    }
  }

  depends_on = [
    google_project_service.required,
    google_pubsub_topic_iam_member.api_events,
    google_secret_manager_secret_iam_member.api_jwt,
  ]
}
