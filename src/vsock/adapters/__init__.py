"""Libraries of others over vsock: only what each of them lacks for that.

=====================  ====================================================================================
`httpx`                `VsockTransport` and `AsyncVsockTransport`, for ``httpx.Client(transport=…)``
`urllib3`              `VsockPoolManager`
`requests`             `VsockAdapter`, for ``Session.mount``
`aiohttp`              `VsockConnector`, for ``ClientSession(connector=…)``
`fsspec`               `GuestFileSystem`: ``vsock://alpha/etc/hosts``, for fsspec and what opens files with it
`multiprocessing`      `Listener` and `Client`, whose connections are those of `multiprocessing.connection`
`unix_socket`          `client_path` and `server_path`, for libraries that take only the path of a Unix socket
`destination`          what these have in common: where the requests of an HTTP client go
=====================  ====================================================================================

Each module imports its library, so it is imported by its name: ``from vsock.adapters.httpx import VsockTransport``. The
guide's page "Libraries" has what to write for libraries that need no module here.
"""
