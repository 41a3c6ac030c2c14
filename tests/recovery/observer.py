"""Watches a network from outside: who answers at which address, asked again and again by ARP.

usage: observer.py INTERFACE,... ADDRESS...     ends at the end of its input; prints one line for each address that ever had two
answers to one question: ADDRESS, MAC after MS, MAC after MS

It asks on all interfaces at once and takes the answers together: of two halves of a network that is split, only one may answer.
"""
import select
import socket
import struct
import sys
import time

interfaces, addresses = sys.argv[1].split(","), sys.argv[2:]
links = []
for interface in interfaces:
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    link.bind((interface, 0))
    links.append(link)


def question(mine, address):
    ethernet = b"\xff" * 6 + mine + struct.pack("!H", 0x0806)
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mine + bytes(4) + bytes(6) + socket.inet_aton(address)
    return ethernet + arp


def forget_what_came_late(links):
    """An answer to an earlier question, which this process had no time to read, is none to the next one."""
    while ready := select.select(links, [], [], 0)[0]:
        for link in ready:
            link.recv(128)


double = {}
# An observer that saw nothing has nothing to say.
silent = set(addresses)
while True:
    seen = {address: {} for address in addresses}
    forget_what_came_late(links)
    begun = time.monotonic()
    for address in addresses:
        for link in links:
            link.send(question(link.getsockname()[4], address))
    while (left := begun + 0.03 - time.monotonic()) > 0:
        ready, _, _ = select.select([*links, sys.stdin], [], [], left)
        if sys.stdin in ready and not sys.stdin.buffer.read(1):
            for address, answers in double.items():
                print(address, *(f"{machine} after {after_ms:.1f} ms" for machine, after_ms in sorted(answers.items())), sep=", ")
            for address in sorted(silent):
                print(address, "never answered")
            sys.exit(1 if double or silent else 0)
        for link in links:
            if link not in ready:
                continue
            frame = link.recv(128)
            # An answer goes to who asked, not to all as an announcement does, and says who it is from: hardware and protocol address.
            if frame[:6] == link.getsockname()[4] and frame[20:22] == b"\x00\x02":
                address = socket.inet_ntoa(frame[28:32])
                if address in seen:
                    seen[address].setdefault(frame[22:28].hex(), (time.monotonic() - begun) * 1000)
    for address, answers in seen.items():
        if answers:
            silent.discard(address)
        if len(answers) > 1:
            double[address] = answers
