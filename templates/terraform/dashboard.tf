locals {
  charts = [
    { title = "Oldest event that waits", unit = "s", queries = [local.backlog_age] },
    { title = "Events that wait", unit = "1", queries = [local.backlog] },
    { title = "Events by outcome, each second", unit = "1/s", queries = ["${local.added["ended"]} / 600"] },
    { title = "Dead letters by reason, in ten minutes", unit = "1", queries = [local.added["dead_letter"]] },
    {
      title   = "From publish to written: half, 95 and 99 of 100 rows"
      unit    = "ms"
      queries = [for share, query in local.event_to_write : "label_replace(${query}, \"share\", \"${share}\", \"\", \"\")"]
    },
    { title = "Batches written by table, each second", unit = "1/s", queries = ["${local.added["batches"]} / 600"] },
    { title = "Nudges by type, in ten minutes", unit = "1", queries = [local.added["nudges"]] },
    { title = "Events that could not be delivered", unit = "1", queries = [local.moved] },
    { title = "System lag of the job", unit = "s", queries = [local.system_lag] },
    { title = "Processors in use by the job", unit = "1", queries = [local.vcpus] },
    { title = "Answers of the HTTP API, each second", unit = "1/s", queries = [local.api] },
  ]
}

resource "google_monitoring_dashboard" "rehab_tracking" {
  dashboard_json = jsonencode({
    displayName = "Rehab tracking"
    gridLayout = {
      columns = "2"
      widgets = [for chart in local.charts : {
        title = chart.title
        xyChart = {
          dataSets = [for query in chart.queries : {
            plotType        = "LINE"
            timeSeriesQuery = { prometheusQuery = query, unitOverride = chart.unit }
          }]
        }
      }]
    }
  })

  depends_on = [google_project_service.required]
}
