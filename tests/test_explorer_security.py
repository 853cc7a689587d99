"""Who may ask the explorer's server."""

import asyncio
import json
from urllib.parse import quote

import httpx
import pytest

from convcircuits.explorer.security import HEADERS, MOST_BYTES, Guard

PORT = 8642
OWN = f"http://127.0.0.1:{PORT}"


async def behind(scope, receive, send):
    """An application that says what reached it."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    said = json.dumps({"path": scope["path"], "bytes": len(body)}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": said})


def guarded(**options):
    return Guard(behind, port=PORT, **options)


def ask(guard, method="GET", path="/api/v1/model", *, session=True, **options):
    async def asked():
        transport = httpx.ASGITransport(app=guard, raise_app_exceptions=True)
        cookies = {guard.cookie: guard._session} if session else {}
        async with httpx.AsyncClient(transport=transport, base_url=OWN, cookies=cookies) as client:
            return await client.request(method, path, **options)

    return asyncio.run(asked())


JSON = {"content-type": "application/json"}


def test_the_address_with_the_token_sets_a_cookie_and_goes_on_without_it():
    guard = guarded()
    answer = ask(guard, path=guard.address.removeprefix(OWN) + "&sort=active", session=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/?sort=active"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{guard.cookie}={guard._session}; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} == set(cookie.split("; ")[1:])
    assert guard.token not in str(answer.headers)
    assert ask(guard).status_code == 200


def test_a_path_is_kept_and_leads_to_no_other_server():
    guard = guarded()
    assert ask(guard, path=f"/u/a%23b/3?token={guard.token}", session=False).headers["location"] == "/u/a%23b/3"
    scope = {"method": "GET", "query_string": f"token={guard.token}".encode(), "raw_path": b"//evil.example/"}
    assert guard._redirect(scope) == "/evil.example/"


@pytest.mark.parametrize("token", ["", "x", "é", "%00"])
def test_another_token_opens_nothing(token):
    answer = ask(guarded(), path=f"/?token={quote(token)}", session=False)
    assert answer.status_code == 401
    assert "terminal" in answer.json()["error"]
    assert "set-cookie" not in answer.headers


def test_the_token_opens_nothing_twice_in_one_address_and_nothing_that_writes():
    guard = guarded()
    for method, path in (("GET", f"/?token={guard.token}&token={guard.token}"), ("POST", f"/?token={guard.token}")):
        assert ask(guard, method, path, session=False, headers=JSON).status_code == 401


@pytest.mark.parametrize(
    "cookie", ["", "x=y", "convcircuits-8642=", "convcircuits-8642=x", "convcircuits-1=SESSION", '"']
)
def test_without_the_cookie_nothing_is_answered(cookie):
    guard = guarded()
    headers = {"cookie": cookie.replace("SESSION", guard._session)}
    assert ask(guard, session=False, headers=headers).status_code == 401


async def refusing(scope, receive, send):
    """An application in which there is nothing."""
    body = json.dumps({"error": "There is no layer <b>."}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": body[:5], "more_body": True})
    await send({"type": "http.response.body", "body": body[5:]})


PERSON = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.mark.parametrize("headers", [PERSON, {"sec-fetch-mode": "navigate", "sec-fetch-site": "none"}])
@pytest.mark.parametrize("path", ["/", "/nonsense", "/apis"])
def test_a_person_who_opens_an_address_reads_a_page_and_no_json(path, headers):
    guard = Guard(refusing, port=PORT)
    for session, status, said in ((False, 401, "printed in its terminal."), (True, 404, "no layer &lt;b&gt;.")):
        answer = ask(guard, path=path, headers=headers, session=session)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert said in answer.text
        assert ('href="/"' in answer.text) == session  # it leads there without the token, too, but to the same page
        assert HEADERS.items() <= dict(answer.headers).items()
        assert "script" not in answer.text
        assert "style" not in answer.text
    assert ask(guarded(), path=path, headers=headers).json()["path"] == path  # what is no error stays as it is


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [("GET", "/nonsense", {}), ("GET", "/api", PERSON), ("GET", "/api/v1/x", PERSON), ("POST", "/x", PERSON | JSON)],
)
def test_a_program_is_answered_in_json(method, path, headers):
    for session in (False, True):
        assert "error" in ask(Guard(refusing, port=PORT), method, path, headers=headers, session=session).json()


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        f"evil.example:{PORT}",
        "127.0.0.1",
        "127.0.0.1:80",
        f"127.0.0.1.evil.example:{PORT}",
        "",
        f"[::]:{PORT}",
    ],
)
def test_a_foreign_host_is_refused_even_with_the_cookie(host):
    assert ask(guarded(), headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", [f"127.0.0.1:{PORT}", f"localhost:{PORT}", f"[::1]:{PORT}"])
def test_its_own_names_are_answered(host):
    assert ask(guarded(), headers={"host": host, "origin": f"http://{host}"}).status_code == 200


def test_where_it_listens_at_all_addresses_only_numbers_are_its_own():
    guard = guarded(host="0.0.0.0")
    assert ask(guard, headers={"host": f"192.168.0.7:{PORT}"}).status_code == 200
    assert ask(guard, headers={"host": f"evil.example:{PORT}"}).status_code == 421
    assert guard.address.startswith(f"{OWN}/?token=")
    assert ask(guarded(host="192.168.0.7"), headers={"host": f"192.168.0.7:{PORT}"}).status_code == 200
    assert ask(guarded(host="192.168.0.7"), headers={"host": f"192.168.0.8:{PORT}"}).status_code == 421


@pytest.mark.parametrize("path", ["/api/v1/model", "/api/v1/events", "/static/diagram.js"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8000"},
        {"origin": f"https://127.0.0.1:{PORT}"},
        {"origin": f"http://localhost:{PORT}"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_page_is_refused_even_with_the_cookie(path, headers):
    answer = ask(guarded(), path=path, headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_a_header_given_twice_is_no_way_around():
    headers = [("origin", OWN), ("origin", "http://evil.example")]
    assert ask(guarded(), headers=headers).status_code == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_writes_must_be_json(kind):
    for method in ("POST", "PUT"):
        assert ask(guarded(), method, content=b"{}", headers={"content-type": kind}).status_code == 415
        assert ask(
            guarded(), method, content=b"{}", headers={"content-type": f"{JSON['content-type']}; charset=utf-8"}
        ).is_success


def test_a_long_body_is_refused_with_and_without_its_length():
    async def parts():
        for _ in range(3):
            yield b"x" * (MOST_BYTES // 2)

    for content in (b"x" * (MOST_BYTES + 1), parts()):
        assert ask(guarded(), "POST", content=content, headers=JSON).status_code == 413
    assert ask(guarded(), "POST", content=b"x" * MOST_BYTES, headers=JSON).json()["bytes"] == MOST_BYTES
    for length in ("-1", "1e3", "9" * 30):
        assert ask(guarded(), "POST", headers={**JSON, "content-length": length}).status_code == 413


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_read_only_refuses_whatever_writes(method):
    answer = ask(guarded(read_only=True), method, headers=JSON)
    assert answer.status_code == 403
    assert "--read-only" in answer.json()["error"]
    assert ask(guarded(read_only=True)).status_code == 200


def test_every_answer_says_what_a_browser_may_do():
    guard = guarded()
    for answer in (ask(guard), ask(guard, session=False), ask(guard, headers={"host": "x"}), ask(guard, "POST")):
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        assert answer.headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control") for name in answer.headers)
    assert "default-src 'self'" in HEADERS["content-security-policy"]
    assert "frame-ancestors 'none'" in HEADERS["content-security-policy"]
    assert "script-src" not in HEADERS["content-security-policy"]  # which is default-src: nothing inline
    assert "unsafe" not in HEADERS["content-security-policy"]  # no inline style either


def test_names_of_layers_reach_the_routes_as_they_were_sent():
    assert ask(guarded(), path="/api/v1/layers/a%2Fb%23c/units").json()["path"] == "/api/v1/layers/a%2Fb%23c/units"


def test_there_are_no_websockets():
    sent = []

    async def asked():
        async def send(message):
            sent.append(message)

        await guarded()({"type": "websocket", "headers": []}, None, send)

    asyncio.run(asked())
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize("other", ['a={"x": 1}', "x[y]=1", "foo", "a=\xe9", "b=1; =", 'c="'])
def test_cookies_of_other_servers_at_this_address_do_not_hide_ours(other):
    guard = guarded()
    cookie = f"{other}; {guard.cookie}={guard._session}".encode("latin-1")
    assert ask(guard, session=False, headers={"cookie": cookie}).status_code == 200


def test_a_long_body_without_its_length_is_refused_also_where_the_application_reads_it_as_json():
    """FastAPI takes any Exception while it reads for a body that is not JSON."""
    from fastapi import FastAPI

    app = FastAPI()

    @app.post("/x")
    def taken(asked: dict[str, str]) -> dict[str, str]:
        return asked

    async def parts():
        for _ in range(3):
            yield b"x" * (MOST_BYTES // 2)

    guard = Guard(app, port=PORT)
    assert ask(guard, "POST", "/x", content=parts(), headers=JSON).status_code == 413


def test_a_link_of_another_site_is_opened_once_more_from_here():
    """With such a link a browser does not send the cookie, and what asks again shows nothing."""
    guard = guarded()
    navigation = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    answer = ask(guard, path="/u/2/3", session=False, headers=navigation)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert 'http-equiv="refresh" content="0"' in answer.text
    assert "set-cookie" not in answer.headers
    assert HEADERS.items() <= dict(answer.headers).items()
    assert ask(guard, path="/u/2/3", session=False, headers={"sec-fetch-site": "same-origin"}).status_code == 401
    assert ask(guard, path="/u/2/3", session=False, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert ask(guard, "POST", "/u/2/3", session=False, headers=navigation | JSON).status_code == 403
