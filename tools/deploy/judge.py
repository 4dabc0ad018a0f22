"""In the network namespace behind the wire: answers TCP on ports 5432 and 9999, and logs each connection."""
import socket, threading

def serve(port):
    s = socket.create_server(("198.51.100.2", port), backlog=128)
    while True:
        c, peer = s.accept()
        with open("/run/judge.log", "a") as f:
            f.write(f"{port} {peer[0]}\n")
        c.close()

for p in (5432, 9999):
    threading.Thread(target=serve, args=(p,)).start()
