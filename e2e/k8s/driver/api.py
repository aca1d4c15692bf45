"""A small client of the API server for the driver and the tests: JSON over HTTPS with a token."""

from __future__ import annotations

import http.client
import json
import pathlib
import ssl
import urllib.parse


class ApiError(Exception):
    """An answer outside 2xx; `status` is its code, `body` what the server said."""

    def __init__(self, status: int, body: str):
        super().__init__(f"{status}: {body[:2000]}")
        self.status, self.body = status, body


class Api:
    def __init__(self, server: str, ca: pathlib.Path, token: str):
        self.server, self.ca, self.token = server, ca, token
        self._context = ssl.create_default_context(cafile=str(ca))

    def request(
        self, method: str, path: str, body: object = None, content_type: str = "application/json", timeout: float = 30
    ) -> tuple[int, str]:
        url = urllib.parse.urlsplit(self.server)
        connection = http.client.HTTPSConnection(url.hostname, url.port, timeout=timeout, context=self._context)
        try:
            headers = {"authorization": f"Bearer {self.token}", "content-type": content_type}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def call(self, method: str, path: str, body: object = None, content_type: str = "application/json") -> dict:
        status, text = self.request(method, path, body, content_type)
        if status // 100 != 2:
            raise ApiError(status, text)
        return json.loads(text) if text.startswith("{") else {"text": text}

    def get(self, path: str) -> dict:
        return self.call("GET", path)

    def find(self, path: str) -> dict | None:
        """The object, or None when there is none."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def create(self, path: str, body: dict) -> dict | None:
        """Creates an object; one that is there already is left as it is, and gives None."""
        try:
            return self.call("POST", path, body)
        except ApiError as error:
            if error.status == 409:
                return None
            raise

    def patch(self, path: str, body: object, content_type: str = "application/merge-patch+json") -> dict:
        return self.call("PATCH", path, body, content_type)

    def answers(self, path: str) -> bool:
        """Whether the path gives 200; a refused connection is a no."""
        try:
            return self.request("GET", path, timeout=5)[0] == 200
        except (OSError, http.client.HTTPException):
            return False
