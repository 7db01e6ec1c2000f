#!/bin/sh
# A cluster on these hosts, for one program: ./ssh.sh node1 'node2 nworkers=2'
set -eu
file=$(mktemp -d)/cluster.json
dask-ssh "$@" --scheduler-port 0 --scheduler-file "$file" &
trap 'kill $!; wait $!; rm -r "$(dirname "$file")"' EXIT

python - "$file" "$#" <<'END'
import socket
import sys

from trio_dask import Client

with Client(scheduler_file=sys.argv[1], timeout="60s") as client:
    client.wait_for_workers(int(sys.argv[2]))
    print("hosts:", client.run(socket.gethostname))
    print("sum:", client.submit(sum, client.map(pow, range(10), [2] * 10)).result())
END
