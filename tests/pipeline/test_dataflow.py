"""The Dataflow job that the same graph becomes."""

from typing import Any

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2 as protos
from apache_beam.runners.dataflow.internal import apiclient
from apache_beam.runners.worker.data_sampler import DataSampler

from pipeline.options import parse_options
from tests.pipeline.conftest import IMAGE, BuildJob, launcher_arguments
from transforms.message import PUBLISH_ID_ATTRIBUTE

TABLES = ("adherence", "consents", "quality", "work_queue", "dead_letters")
BATCHES = common_urns.group_into_batches_components.GROUP_INTO_BATCHES.urn


def payloads(job: Any, urn: str, message_type: Any) -> dict[str, Any]:
    """The payloads of the transforms with that urn, by their full names."""
    return {
        transform.unique_name: message_type.FromString(transform.spec.payload)
        for transform in job.proto_pipeline.components.transforms.values()
        if transform.spec.urn == urn
    }


def environment(job: Any) -> Any:
    """The job's environment, as the submission would state it."""
    return apiclient.Environment(
        proto_pipeline_staged_url="gs://my-bucket/staging/pipeline.pb",
        packages=[],
        options=job.options,
        environment_version="1",
        proto_pipeline=job.proto_pipeline,
    ).proto


def test_both_subscriptions_are_read_by_pubsubs_own_read(job: Any) -> None:
    reads = payloads(job, common_urns.composites.PUBSUB_READ.urn, protos.PubSubReadPayload)
    assert {
        name: (read.subscription, read.id_attribute, read.with_attributes) for name, read in reads.items()
    } == {
        "Read/Read primary/Pull/Read": (
            "projects/rehab-local/subscriptions/rehab-primary",
            PUBLISH_ID_ATTRIBUTE,
            True,
        ),
        "Read/Read secondary/Pull/Read": (
            "projects/rehab-local/subscriptions/rehab-secondary",
            PUBLISH_ID_ATTRIBUTE,
            True,
        ),
    }


def test_one_subscription_is_one_read(build_job: BuildJob) -> None:
    # The option is stated twice; the last one holds.
    single = build_job("--secondary_subscription=")
    assert len(payloads(single, common_urns.composites.PUBSUB_READ.urn, protos.PubSubReadPayload)) == 1


def test_what_a_rebuild_holds_back_waits_for_the_watermark(job: Any) -> None:
    steps = payloads(job, common_urns.primitives.PAR_DO.urn, protos.ParDoPayload)
    for projection in ("Adherence", "Quality", "Work queue"):
        timers = steps[f"{projection}/Project/ParDo(Project)"].timer_family_specs
        domains = {name.rpartition("-")[2]: timer.time_domain for name, timer in timers.items()}
        assert domains["catch_up"] == protos.TimeDomain.EVENT_TIME
        assert domains["wake"] == protos.TimeDomain.PROCESSING_TIME


def test_rows_are_batched_for_every_table(job: Any) -> None:
    batches = payloads(job, BATCHES, protos.GroupIntoBatchesPayload)
    assert {
        name: (batch.batch_size, batch.max_buffering_duration_millis) for name, batch in batches.items()
    } == {f"Write {table}/Batch/Group": (100, 1000) for table in TABLES}


def test_batches_are_as_the_options_say(build_job: BuildJob) -> None:
    other = build_job("--batch_size=7", "--batch_timeout_ms=2500")
    batches = payloads(other, BATCHES, protos.GroupIntoBatchesPayload).values()
    assert {(batch.batch_size, batch.max_buffering_duration_millis) for batch in batches} == {(7, 2500)}


def test_nudges_are_written_to_the_topic(job: Any) -> None:
    writes = payloads(job, common_urns.composites.PUBSUB_WRITE.urn, protos.PubSubWritePayload)
    assert [write.topic for write in writes.values()] == ["projects/rehab-local/topics/rehab-nudges"]


def test_the_job_is_a_stream_with_ten_processors(job: Any) -> None:
    assert job.json().count("JOB_TYPE_STREAMING") == 1
    (pool,) = environment(job).worker_pools
    assert pool.num_threads_per_worker == 10


def test_processors_are_visible_in_the_job(build_job: BuildJob) -> None:
    (pool,) = environment(build_job("--processors=3")).worker_pools
    assert pool.num_threads_per_worker == 3


def test_every_environment_is_the_templates_image(job: Any) -> None:
    environments = job.proto_pipeline.components.environments.values()
    assert environments
    for stated in environments:
        assert stated.urn == common_urns.environments.DOCKER.urn
        assert protos.DockerPayload.FromString(stated.payload).container_image == IMAGE
    (pool,) = environment(job).worker_pools
    assert [image.container_image for image in pool.sdk_harness_container_images] == [IMAGE]


def test_nothing_of_the_main_module_is_sent_to_the_workers(job: Any) -> None:
    staged = {
        protos.ArtifactStagingToRolePayload.FromString(dependency.role_payload).staged_name
        for stated in job.proto_pipeline.components.environments.values()
        for dependency in stated.dependencies
    }
    # A list of what is installed, for diagnosis.
    assert staged == {"submission_environment_dependencies.txt"}


def test_state_and_shuffle_are_streaming_engines(job: Any) -> None:
    experiments = set(environment(job).experiments)
    assert {"enable_streaming_engine", "enable_windmill_service"} <= experiments


def test_what_a_step_fails_on_is_not_copied_to_a_bucket(job: Any) -> None:
    always = [f"{what}_always_on_exception_sampling" for what in ("enable", "disable")]
    assert always[1] in environment(job).experiments
    # Dataflow enables it; what a worker makes of both.
    worker = PipelineOptions([f"--experiments={','.join(always)}"])
    assert DataSampler.create(worker) is None
    assert DataSampler.create(PipelineOptions([f"--experiments={always[0]}"])) is not None


def test_the_job_bears_its_name_its_labels_and_its_workers_account(job: Any) -> None:
    assert job.proto.name == "rehab-tracking"
    assert dict(job.proto.labels) == {
        "app": "rehab-tracking",
        "goog-dataflow-provided-template-type": "flex",
    }
    assert environment(job).service_account_email == "rehab-worker@rehab-local.iam.gserviceaccount.com"


def test_an_update_replaces_the_job_of_the_same_name(build_job: BuildJob) -> None:
    # Building it would ask Dataflow for that job.
    cloud = parse_options(launcher_arguments("update")).view_as(GoogleCloudOptions)
    assert cloud.update
    assert cloud.job_name == "rehab-tracking"


def test_gclouds_flags_reach_the_job(build_job: BuildJob) -> None:
    (pool,) = environment(build_job("--", "--max-workers=7")).worker_pools
    assert pool.autoscaling_settings.max_num_workers == 7
    mode = "streaming_mode_at_least_once"
    assert mode in environment(build_job("--", f"--additional-experiments={mode}")).experiments


def test_nothing_is_pickled_where_keys_are_shuffled(job: Any) -> None:
    components = job.proto_pipeline.components

    def coders_of(coder_id: str) -> list[str]:
        inner = components.coders[coder_id].component_coder_ids
        return [coder_id, *(name for part in inner for name in coders_of(part))]

    shuffled = 0
    for transform in components.transforms.values():
        if transform.spec.urn != common_urns.primitives.PAR_DO.urn:
            continue
        pardo = protos.ParDoPayload.FromString(transform.spec.payload)
        if not pardo.state_specs:
            continue
        shuffled += 1
        for collection in transform.inputs.values():
            # The coder that falls back on pickling.
            names = coders_of(components.pcollections[collection].coder_id)
            assert not [name for name in names if "FastPrimitives" in name], transform.unique_name
    # Three projectors and five batches.
    assert shuffled == 8
