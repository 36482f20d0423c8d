#!/usr/bin/env bash
# Builds the template, and launches, updates and stops the job.
# Without -u, because the Bash of macOS treats an empty array as an unset variable.
set -eo pipefail

usage() {
  cat <<'USAGE'
PROJECT=… REGION=… BUCKET=… templates/launch.sh [--dry-run] COMMAND [--OPTION=VALUE …] [-- GCLOUD_FLAG …]

  build     builds both images and the template, named TAG (default: the commit)
  launch    starts the job; each OPTION is one of the job's, such as --batchers=4
  update    replaces the running job and keeps its state; takes options like launch
  drain     stops the job once what it has read is written
  cancel    stops the job at once; what it has not acknowledged is delivered again
  snapshot  keeps the running job's state, and its place in the subscriptions, for 7 days

--dry-run prints the gcloud commands instead of running them.
JOB names the job (rehab-tracking). With TAG, launch and update take the template of that build instead of
the newest. What follows -- goes to gcloud as it is, such as --max-workers=20.
USAGE
}

fail() {
  echo "launch.sh: $*" >&2
  exit 2
}

run() {
  if [[ $dry_run ]]; then
    printf '%s' "$1"
    printf ' %q' "${@:2}"
    printf '\n'
  else
    "$@"
  fi
}

# Prints the id of the running job of that name.
find_job() {
  local list=(gcloud dataflow jobs list "--project=$PROJECT" "--region=$REGION" --status=active
    "--filter=name=$JOB" '--format=value(id)')
  if [[ $dry_run ]]; then
    run "${list[@]}"
    job=JOB_ID
    return
  fi
  job=$("${list[@]}")
  [[ $job ]] || fail "No job $JOB runs in $REGION."
}

build() {
  ((${#options[@]} == 0)) || fail "build takes no options of the job."
  local tag=${TAG:-$(git -C "$root" describe --always --dirty --abbrev=12 2>/dev/null)}
  [[ $tag =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$ ]] || fail "TAG must be a tag of an image, such as 0.1.0."
  run gcloud builds submit "$root" "--project=$PROJECT" "--region=$REGION" \
    "--config=$root/templates/cloudbuild.yaml" "--gcs-source-staging-dir=gs://$BUCKET/builds" \
    "--substitutions=_IMAGES=$REGION-docker.pkg.dev/$PROJECT/rehab-tracking,_BUCKET=$BUCKET,_TAG=$tag" \
    "${flags[@]}"
}

launch() {
  local resources=projects/$PROJECT parameters=() option
  parameters=(
    "--parameters=primary_subscription=$resources/subscriptions/rehab-primary"
    "--parameters=secondary_subscription=$resources/subscriptions/rehab-secondary"
    "--parameters=nudge_topic=$resources/topics/rehab-nudges"
    "--parameters=dataset=$PROJECT.rehab_tracking"
  )
  for option in "${options[@]}"; do
    [[ $option == --*=* ]] || fail "$option must have the form --OPTION=VALUE."
    [[ $option != *,* ]] || fail "${option%%=*} must not contain a comma."
    parameters+=("--parameters=${option#--}")
  done
  run gcloud dataflow flex-template run "$JOB" "--project=$PROJECT" "--region=$REGION" \
    "--template-file-gcs-location=gs://$BUCKET/templates/rehab-tracking${TAG:+-$TAG}.json" \
    "--service-account-email=rehab-worker@$PROJECT.iam.gserviceaccount.com" \
    "--temp-location=gs://$BUCKET/temp" "--staging-location=gs://$BUCKET/staging" --enable-streaming-engine \
    "--additional-user-labels=app=rehab-tracking" "${parameters[@]}" "$@" "${flags[@]}"
}

update() {
  local renamed=() step
  while IFS= read -r step; do
    [[ $step == \#* || ! $step ]] || renamed+=("--transform-name-mappings=$step")
  done <"$root/templates/renamed_steps.txt"
  launch --update "${renamed[@]}"
}

stop() {
  ((${#options[@]} == 0)) || fail "$1 takes no options of the job."
  find_job
  run gcloud dataflow jobs "$1" "$job" "--project=$PROJECT" "--region=$REGION" "${flags[@]}"
}

snapshot() {
  ((${#options[@]} == 0)) || fail "snapshot takes no options of the job."
  find_job
  run gcloud dataflow snapshots create "--job-id=$job" "--project=$PROJECT" "--region=$REGION" \
    --snapshot-sources=true --snapshot-ttl=7d "${flags[@]}"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run='' command='' options=() flags=()
while (($#)); do
  case $1 in
  -h | --help)
    usage
    exit 0
    ;;
  --dry-run) dry_run=yes ;;
  --)
    flags=("${@:2}")
    break
    ;;
  -*) options+=("$1") ;;
  *)
    [[ ! $command ]] || fail "There is more than one command: $command and $1."
    command=$1
    ;;
  esac
  shift
done

case $command in
build | launch | update | drain | cancel | snapshot) ;;
'') fail "Say what to do: build, launch, update, drain, cancel or snapshot." ;;
*) fail "There is no command $command: use build, launch, update, drain, cancel or snapshot." ;;
esac
for name in PROJECT REGION BUCKET; do
  [[ ${!name:-} ]] || fail "Set $name, as in PROJECT=my-project REGION=europe-west3 BUCKET=my-bucket."
done
JOB=${JOB:-rehab-tracking}

case $command in
drain | cancel) stop "$command" ;;
*) "$command" ;;
esac
