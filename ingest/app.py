"""The application: everything that answers a request, put together."""

from fastapi import FastAPI
from secure import (
    CacheControl,
    ContentSecurityPolicy,
    CrossOriginOpenerPolicy,
    CrossOriginResourcePolicy,
    ReferrerPolicy,
    Secure,
    StrictTransportSecurity,
    XContentTypeOptions,
    XFrameOptions,
)
from secure.middleware import SecureASGIMiddleware

from ingest import docs, metrics, refusals
from ingest.auth import Verifier
from ingest.settings import Settings
from ingest.status import router as status


def create_app(settings: Settings) -> FastAPI:
    """The API of checked settings. Raises SettingsError for a key that cannot be used."""
    app = FastAPI(title="Rehabilitation tracking", version="1", docs_url=None, redoc_url=None)
    app.state.settings = settings
    app.state.verifier = Verifier(settings)
    refusals.install(app)
    status.install(app, settings)
    metrics.install(app)
    scripts = docs.install(app)
    # The last one added comes first: what fails anywhere is answered, and every answer has the headers.
    app.add_middleware(refusals.LastResort)
    app.add_middleware(SecureASGIMiddleware, secure=_security_headers(scripts))
    return app


def _security_headers(scripts: list[str]) -> Secure:
    policy = (
        ContentSecurityPolicy()
        .default_src("'none'")
        .script_src(*scripts)
        .style_src("'self'", "'unsafe-inline'")
        .img_src("'self'", "data:")
        .connect_src("'self'")
        .base_uri("'none'")
        .form_action("'none'")
        .frame_ancestors("'none'")
    )
    return Secure(
        cache=CacheControl().no_store(),
        coop=CrossOriginOpenerPolicy().same_origin(),
        corp=CrossOriginResourcePolicy().same_origin(),
        csp=policy,
        hsts=StrictTransportSecurity().max_age(31_536_000),
        referrer=ReferrerPolicy().no_referrer(),
        xcto=XContentTypeOptions().nosniff(),
        xfo=XFrameOptions().deny(),
    )
