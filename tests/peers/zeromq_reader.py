"""A process of libzmq's own: binds a PULL or SUB at a port and writes each message as a line of JSON, until it is killed."""
import json
import sys

import zmq

kind, port = sys.argv[1:3]
socket = zmq.Context().socket(getattr(zmq, kind))
if kind == 'SUB':
    socket.subscribe(b'')
socket.bind('tcp://127.0.0.1:' + port)
while True:
    print(json.dumps([part.decode() for part in socket.recv_multipart()]), flush=True)
