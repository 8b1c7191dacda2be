"""The TensorBoard plugin: routes around `answers`, and the files of the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensorboard import errors, plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from gradscope_integrations.tensorboard import answers, assets, wire
from gradscope_integrations.tensorboard.cache import Cache
from gradscope_integrations.tensorboard.names import PLUGIN
from gradscope_integrations.tensorboard.reading import Reader

Handler = Callable[[wrappers.Request], wrappers.Response]

YEAR_S = 365 * 24 * 3600


class MethodNotAllowed(errors.PublicError):
    """The tab is read-only."""

    http_code = 405

    def __init__(self) -> None:
        super().__init__("Method not allowed: use GET")
        self.headers.append(("Allow", "GET, HEAD"))


class GradscopePlugin(base_plugin.TBPlugin):
    """The Gradscope tab."""

    plugin_name = PLUGIN

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._provider = context.data_provider
        self._cache = Cache()

    def is_active(self) -> bool:
        """False: TensorBoard shows the tab itself if a run has data of this name, and this call must cost nothing."""
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """An iframe that imports our module."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="Gradscope")

    def get_plugin_apps(self) -> dict[str, Any]:
        """The routes of `http_api.md`."""
        apps = {f"/{name}": self._json(answer) for name, answer in answers.JSON.items()}
        apps |= {f"/{name}": self._binary(answer) for name, answer in answers.BINARY.items()}
        apps |= {"/index.js": _index, "/static/*": _static, "/plotly.min.js": _plotly}
        return {route: _wsgi(handler) for route, handler in apps.items()}

    def _reader(self, request: wrappers.Request) -> Reader:
        context, experiment = plugin_util.context(request.environ), plugin_util.experiment_id(request.environ)
        return Reader(self._provider, context, experiment, self._cache)

    def _json(self, answer: Callable[[Reader, answers.Query], Any]) -> Handler:
        def handle(request: wrappers.Request) -> wrappers.Response:
            content = answer(self._reader(request), answers.Query(request.args))
            return http_util.Respond(request, content, "application/json")

        return handle

    def _binary(self, answer: Callable[[Reader, answers.Query], Any]) -> Handler:
        def handle(request: wrappers.Request) -> wrappers.Response:
            content = wire.pack(*answer(self._reader(request), answers.Query(request.args)))
            return http_util.Respond(request, content, "application/octet-stream")

        return handle


def _index(request: wrappers.Request) -> wrappers.Response:
    return _file(request, "index.js")


def _static(request: wrappers.Request) -> wrappers.Response:
    return _file(request, request.path.partition("/static/")[2])


def _file(request: wrappers.Request, name: str) -> wrappers.Response:
    file = assets.own(name)
    if file is None:
        raise errors.NotFoundError(f"no file {name!r}")
    return http_util.Respond(request, *file)


def _plotly(request: wrappers.Request) -> wrappers.Response:
    script = assets.plotly()
    if script is None:
        raise errors.NotFoundError("Plotly is not installed; get it with: pip install 'gradscope-rnn[tensorboard]'")
    expires = YEAR_S if request.args.get("v") == assets.plotly_version() else 0
    return http_util.Respond(request, script, "text/javascript", content_encoding="gzip", expires=expires)


def _wsgi(handler: Handler) -> Any:
    def handle(request: wrappers.Request) -> wrappers.Response:
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed
        return handler(request)

    return wrappers.Request.application(handle)
