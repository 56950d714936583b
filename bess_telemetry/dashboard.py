"""Web server of the dashboard: login, guard, JSON for programs, and the NiceGUI page.

The server runs in a thread of its own, never in the main thread (that one belongs to ROS). NiceGUI
keeps its state in module globals bound to one event loop; therefore one web thread per process is
started when first needed, and each `DashboardServer` comes and goes on its loop.
"""

from __future__ import annotations

import asyncio
import atexit
import socket
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs, urlsplit

from bess_telemetry.auth import AuthError, DashboardAuth, LoginRefused
from bess_telemetry.site_view import SiteView, json_safe, power_flow
from bess_telemetry.web_style import FAVICON, login_page

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import Response

#: Key of the ASGI scope under which a page finds the server that serves it.
SCOPE_KEY = 'bess.dashboard'

_HEADERS = (
    (b'x-frame-options', b'DENY'),
    (b'x-content-type-options', b'nosniff'),
    (b'referrer-policy', b'same-origin'),
    # Nothing may be loaded from elsewhere. NiceGUI needs inline scripts and `new Function`.
    (
        b'content-security-policy',
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        b"style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
        b"frame-ancestors 'none'; form-action 'self'; base-uri 'self'",
    ),
)
_LONGEST_FORM = 4096  # bytes


class Actions(Protocol):
    """What a user may do. Each answers (accepted, message) later; none blocks."""

    def start(self) -> Future[tuple[bool, str]]: ...
    def stop(self) -> Future[tuple[bool, str]]: ...
    def set_mode(self, name: str) -> Future[tuple[bool, str]]: ...
    def clear_fault(self, source: str, fault_id: str) -> Future[tuple[bool, str]]: ...
    def acknowledge(self, source: str, fault_id: str) -> Future[tuple[bool, Any]]: ...
    def run_test(self, steps: Sequence[str]) -> Future[tuple[bool, Any]]: ...
    def stop_test(self) -> Future[tuple[bool, Any]]: ...
    def test_alive(self, number: int) -> None: ...
    def set_parameter(self, name: str, value: str, comment: str) -> Future[tuple[bool, Any]]: ...
    def rollback(self, revision: int) -> Future[tuple[bool, Any]]: ...
    def events(self, severity: int = 0, source: str = '', text: str = '') -> Future[tuple[bool, Any]]: ...
    def parameters(self, pattern: str = '', history: bool = False) -> Future[tuple[bool, Any]]: ...


class _WebThread:
    """The one event loop for web things of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stack = AsyncExitStack()
        self._app: Any = None

    def submit(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        """Run a coroutine on the web loop; starts the thread when it is not there yet."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name='dashboard', daemon=True
                )
                self._thread.start()
                atexit.register(self._end)
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def app(self) -> Any:
        """The NiceGUI app. Only on the web loop: its import takes most of a second."""
        if self._app is None:
            from fastapi import FastAPI
            from nicegui import ui

            from bess_telemetry import dashboard_page

            app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
            dashboard_page.register()
            ui.run_with(
                app,
                title='bess',
                favicon=FAVICON,
                dark=None,
                tailwind=False,
                binding_refresh_interval=None,
                show_welcome_message=False,
            )
            self._app = app
        return self._app

    async def started_app(self) -> Any:
        """The NiceGUI app, running."""
        fresh = self._app is None
        app = self.app()
        if fresh:
            await self._stack.enter_async_context(app.router.lifespan_context(app))
        return app

    def _end(self) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        done = asyncio.run_coroutine_threadsafe(self._stack.aclose(), loop)
        try:
            done.result(2.0)
        except TimeoutError:
            done.cancel()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(2.0)


_web = _WebThread()


class DashboardServer:
    """One dashboard on one address. `start` binds the port at once and serves soon after.

    host: '127.0.0.1' keeps it on this machine. port: 0 = the system chooses, see `url`.
    """

    def __init__(
        self,
        view: SiteView,
        actions: Actions,
        auth: DashboardAuth,
        host: str = '127.0.0.1',
        port: int = 0,
        *,
        refresh: float = 1.0,
        action_timeout: float = 10.0,
    ) -> None:
        self.view = view
        self.actions = actions
        self.auth = auth
        self.refresh = refresh  # s between updates of a page
        self.action_timeout = action_timeout  # s
        self._host = host
        self._port = port
        self._server: uvicorn.Server | None = None
        self._serving: Future[None] | None = None
        self._stopping = False
        self.ready: Future[None] = Future()

    def start(self) -> None:
        """Bind and listen (OSError when the port is taken), then serve in the web thread.

        Returns within milliseconds; browsers that connect meanwhile wait. `ready` is done when
        pages are served, and holds the exception when that fails.
        """
        family = socket.AF_INET6 if ':' in self._host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self._host, self._port))
            sock.listen(64)
        except OSError as error:
            sock.close()
            raise OSError(error.errno, f'{self._host}:{self._port}: {error.strerror} (port 0 takes any)') from error
        self._port = sock.getsockname()[1]
        self._serving = _web.submit(self._serve(sock))
        self._serving.add_done_callback(self._served)

    @property
    def url(self) -> str:
        """Where the dashboard is; the port is right after `start`."""
        host = {'0.0.0.0': '127.0.0.1', '::': '[::1]'}.get(self._host, self._host)
        return f'http://{f"[{host}]" if ":" in host and "[" not in host else host}:{self._port}/'

    @property
    def failure(self) -> BaseException | None:
        """Why it does not serve, None while all is well."""
        return self.ready.exception() if self.ready.done() else None

    def stop(self, timeout: float = 5.0) -> None:
        """Close the port and all connections. TimeoutError when it takes over `timeout` s."""
        self._stopping = True
        if self._serving is None:
            return
        if self._server is not None:
            self._server.should_exit = True
        self._serving.exception(timeout)  # what went wrong earlier is in `failure`

    async def _serve(self, sock: socket.socket) -> None:
        with sock:
            import uvicorn

            pages = await _web.started_app()
            ready = self.ready

            class Server(uvicorn.Server):
                async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                    await super().startup(sockets)
                    ready.set_result(None)

            config = uvicorn.Config(
                _Site(self, pages),
                lifespan='off',
                log_config=None,
                access_log=False,
                proxy_headers=False,  # anybody could write another address into them
                server_header=False,
                timeout_graceful_shutdown=1,
            )
            self._server = Server(config)
            # `stop` may have come before there was a server to tell.
            self._server.should_exit = self._stopping
            await self._server.serve(sockets=[sock])

    def _served(self, done: Future[None]) -> None:
        error = done.exception()
        if not self.ready.done():
            self.ready.set_exception(
                error or RuntimeError('the dashboard was stopped before it was ready')
            )


class _Site:
    """ASGI app of one dashboard: own routes first, then everything else behind the login."""

    def __init__(self, dashboard: DashboardServer, pages: Any) -> None:
        from starlette.applications import Starlette
        from starlette.routing import Route

        self._dashboard = dashboard
        self._auth = dashboard.auth
        self._pages = pages
        self._open = Starlette(
            routes=[
                Route('/healthz', self._health),
                Route('/favicon.ico', self._favicon),
                Route('/login', self._login_page, methods=['GET']),
                Route('/login', self._login, methods=['POST']),
                Route('/logout', self._logout, methods=['POST']),
                Route('/api/state', self._state),
            ]
        )
        self._open_paths = {'/healthz', '/favicon.ico', '/login', '/logout', '/api/state'}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope['type'] not in ('http', 'websocket'):
            return
        scope[SCOPE_KEY] = self._dashboard

        async def send_with_headers(message: Any) -> None:
            if message['type'] == 'http.response.start':
                message = message | {'headers': [*message.get('headers', ()), *_HEADERS]}
            await send(message)

        if scope['type'] == 'http' and scope['path'] in self._open_paths:
            await self._open(scope, receive, send_with_headers)
        elif self._auth.session_valid(self.session(scope)) and (
            scope['type'] == 'http' or _same_origin(scope)
        ):
            await self._pages(scope, receive, send_with_headers)
        else:
            await _refuse(scope, receive, send_with_headers)

    def session(self, scope: Any) -> str | None:
        """Session token of a request or web socket."""
        from starlette.requests import HTTPConnection

        return HTTPConnection(scope).cookies.get(self._auth.cookie_name)

    async def _health(self, _: Request) -> Response:
        from starlette.responses import JSONResponse

        return JSONResponse({'ok': True})

    async def _favicon(self, _: Request) -> Response:
        from starlette.responses import Response

        return Response(FAVICON, media_type='image/svg+xml')

    async def _login_page(self, request: Request) -> Response:
        from starlette.responses import HTMLResponse, RedirectResponse

        if self._auth.session_valid(self.session(request.scope)):
            return RedirectResponse('/', 303)
        return HTMLResponse(
            login_page(self._dashboard.view.site), headers={'cache-control': 'no-store'}
        )

    async def _login(self, request: Request) -> Response:
        from starlette.responses import HTMLResponse, RedirectResponse

        site = self._dashboard.view.site
        if not _same_origin(request.scope):
            return HTMLResponse(login_page(site, 'This page was called from another site.'), 403)
        body = b''
        async for part in request.stream():
            body += part
            if len(body) > _LONGEST_FORM:
                return HTMLResponse(login_page(site, 'That is too long for a password.'), 413)
        password = parse_qs(body.decode('utf-8', 'replace'), keep_blank_values=True).get(
            'password', ['']
        )[0]
        address = request.client.host if request.client else ''
        try:
            token = await asyncio.to_thread(self._auth.login, password, address)
        except LoginRefused as error:
            headers = {'retry-after': f'{error.retry_after:.0f}'} if error.retry_after else {}
            return HTMLResponse(
                login_page(site, str(error)), 429 if error.retry_after else 401, headers
            )
        except AuthError as error:
            return HTMLResponse(login_page(site, str(error)), 500)
        response = RedirectResponse('/', 303)
        response.set_cookie(
            self._auth.cookie_name,
            token,
            max_age=int(self._auth.session_life),
            httponly=True,
            samesite='strict',
            secure=request.url.scheme == 'https',
        )
        return response

    async def _logout(self, request: Request) -> Response:
        from starlette.responses import PlainTextResponse, RedirectResponse

        if not _same_origin(request.scope):
            return PlainTextResponse('called from another site', 403)
        self._auth.logout(self.session(request.scope))
        response = RedirectResponse('/login', 303)
        response.delete_cookie(self._auth.cookie_name, httponly=True, samesite='strict')
        return response

    async def _state(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        bearer = request.headers.get('authorization')
        if not self._auth.bearer_valid(bearer) and not self._auth.session_valid(
            self.session(request.scope)
        ):
            needed = '"Authorization: Bearer <content of dashboard-token.txt>"'
            refusal = {'error': f'needs a session or {needed}'}
            return JSONResponse(refusal, 401, {'www-authenticate': 'Bearer'})
        snapshot = self._dashboard.view.snapshot()
        answer = json_safe(snapshot | {'power_flow': power_flow(snapshot)})
        return JSONResponse(answer, headers={'cache-control': 'no-store'})


def _same_origin(scope: Any) -> bool:
    """False when a browser says that another site's page is asking. Cookies alone do not tell:
    pages of other ports of this machine count as the same site.
    """
    from starlette.datastructures import Headers

    headers = Headers(scope=scope)
    origin = headers.get('origin')
    return origin is None or (origin != 'null' and urlsplit(origin).netloc == headers.get('host'))


async def _refuse(scope: Any, receive: Any, send: Any) -> None:
    from starlette.responses import PlainTextResponse, RedirectResponse

    if scope['type'] == 'websocket':
        await receive()  # websocket.connect
        await send({'type': 'websocket.close', 'code': 1008})
        return
    wants_page = scope['method'] == 'GET' and scope['path'] == '/'
    response: Response = (
        RedirectResponse('/login', 303) if wants_page else PlainTextResponse('log in first', 401)
    )
    await response(scope, receive, send)
