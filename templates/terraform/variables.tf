variable "project" {
  description = "Google Cloud project in which everything is created."
  type        = string
}

variable "region" {
  description = "Region of the job, the bucket, the images and the HTTP API."
  type        = string
}

variable "bucket" {
  description = "Bucket to create, for the template and the job's staged files; its name must be unique in all of Google Cloud."
  type        = string
}

variable "dataset_location" {
  description = "Where BigQuery keeps the dataset."
  type        = string
  default     = "EU"
}

variable "message_regions" {
  description = "The only regions in which Pub/Sub may keep messages; empty: the organization's policy decides."
  type        = list(string)
  default     = []
}

variable "operators" {
  description = "Who may act as rehab-launcher, to build and launch: user:NAME@DOMAIN, group:NAME@DOMAIN."
  type        = list(string)
  default     = []
}

variable "readers" {
  description = "Who may read the views of the projections, but no table: user:NAME@DOMAIN, group:NAME@DOMAIN."
  type        = list(string)
  default     = []
}

variable "alert_emails" {
  description = "Addresses that get the alerts."
  type        = list(string)
  default     = []
}

variable "backlog_age_seconds" {
  description = "Alert when the oldest unprocessed event of a subscription is older than this."
  type        = number
  default     = 300
}

variable "dead_letter_percent" {
  description = "Alert when more than this percentage of events become dead letters."
  type        = number
  default     = 1
}

variable "event_to_write_p95_ms" {
  description = "Alert when 5 of 100 rows take longer than this from publish to written; under 30000, the job's highest bound."
  type        = number
  default     = 5000

  validation {
    condition     = var.event_to_write_p95_ms > 0 && var.event_to_write_p95_ms < 30000
    error_message = "event_to_write_p95_ms must be over 0 and under 30000."
  }
}

variable "run_job" {
  description = "Whether Terraform also runs the job, instead of templates/launch.sh."
  type        = bool
  default     = false
}

variable "job_parameters" {
  description = "With run_job: further options of the job, by name."
  type        = map(string)
  default     = {}
}

variable "max_workers" {
  description = "With run_job: the maximum number of workers."
  type        = number
  default     = 10
}

variable "subnetwork" {
  description = "With run_job: regions/REGION/subnetworks/NAME with Private Google Access. The workers then have no public addresses."
  type        = string
  default     = null
}

variable "api_image" {
  description = "Image of the HTTP API, made by templates/launch.sh build; null: the HTTP API is not deployed."
  type        = string
  default     = null
}

variable "api_ingress" {
  description = "From where the HTTP API can be reached: INGRESS_TRAFFIC_INTERNAL_ONLY, INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER or INGRESS_TRAFFIC_ALL."
  type        = string
  default     = "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER"
}

variable "api_callers" {
  description = "Who may call the HTTP API through Cloud Run, such as serviceAccount:NAME; allUsers: anyone, so that only the API's own tokens protect it."
  type        = list(string)
  default     = []
}

variable "api_min_instances" {
  description = "Minimum number of instances of the HTTP API."
  type        = number
  default     = 1
}

variable "job_id" {
  description = "Id of the running job, whose status the HTTP API reports; an update gives the job a new id."
  type        = string
  default     = null
}
