"""One of SLURM's commands, by the name it is called under: asks the pretend controller beside it.

Started once for every RPC, so it imports nothing that is not built in: 10 ms in all.
"""

import _socket
import os
import sys
import time


def main() -> int:
    """Send what was asked, wait as long as the real command takes, print the answer."""
    here, tool = os.path.split(sys.argv[0])
    words = [tool, os.getcwd(), os.environ.get("SLURM_BITSTR_LEN", ""), *sys.argv[1:]]
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        link.connect(os.path.join(here, "controller"))
    except OSError:
        sys.stderr.write(f"{tool}: error: Unable to contact slurm controller (connect failure)\n")
        return 1
    link.sendall("\0".join(words).encode())
    link.shutdown(_socket.SHUT_WR)
    parts = []
    while part := link.recv(1 << 16):
        parts.append(part)
    code, wait_s, out, err = b"".join(parts).decode().split("\0")
    # its own start has taken some of that time already
    time.sleep(max(0.0, float(wait_s) - time.process_time()))
    sys.stdout.write(out)
    sys.stderr.write(err)
    return int(code)


sys.exit(main())
