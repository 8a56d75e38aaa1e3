"""The worker: a short-lived process with all of Koinon in it, for one run of rounds.

The daemon starts it when the bell has rung (or when work was under way), and it ends when nothing is to be done. It has
the conversation with the coordinator, unpacks the round's model into a file, lets the owner's program train on it over
a local socket, and packs, masks and hands in what comes of that. So the daemon itself stays small, and an owner's
program that dies takes nobody along.

    __main__.py  the process, and what it says to the daemon
    desk.py      the rounds: from a task of the session to what the program made of it
    door.py      the socket to the owner's program
    remote.py    the program's model, as the session sees it
    tensors.py   the files in which tensors go to and fro
"""
