"""The collector's one port: agents publish on it by the lean way below, and every other call goes on to a gRPC server.

At a thousand agents gRPC's own server would take half a core for handing one window a second from each to Python, most of it in
wake-ups of its threads. Here one thread reads the sockets, and h2 speaks HTTP/2 (docs/performance.md).
"""
