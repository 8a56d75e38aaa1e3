"""Pieces of blobs as messages: what protobuf makes and reads, without its copies."""

import pytest
from google.protobuf.message import DecodeError

from koinon_core.blob import Blob
from koinon_core.errors import BadBlob
from koinon_core.wire.pieces import FIRST, MOST, Pieces, data_of, download_piece, upload_part, upload_piece
from koinon_core.wire.v1 import blobs_pb2 as pb

SIZES = [0, 1, 127, 128, 16_383, 16_384, FIRST, MOST, 3_000_000]


@pytest.mark.parametrize("size", SIZES)
def test_a_piece_made_by_hand_is_what_protobuf_makes(size):
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert upload_piece(data) == pb.UploadRequest(data=data).SerializeToString()
    if data:  # an empty field is left out; nobody sends one
        assert download_piece(memoryview(data)) == pb.DownloadResponse(data=data).SerializeToString()
    assert upload_part(upload_piece(data)) == data
    assert data_of(download_piece(data)) == data


def test_reading_a_piece_copies_nothing():
    message = upload_piece(bytes(MOST))
    part = upload_part(message)
    assert isinstance(part, memoryview)
    assert part.obj is message


def test_a_message_of_another_form_is_left_to_protobuf():
    start = pb.UploadStart(digest="ab", size=7, offset=3, run="r", round=2)
    assert upload_part(pb.UploadRequest(start=start).SerializeToString()) == start
    twice = upload_piece(b"first") + upload_piece(b"second")
    assert upload_part(twice) == b"second", "as protobuf reads it: the last one counts"
    assert data_of(download_piece(b"known") + b"\x58\x01") == b"known", "a field of a later version"
    assert upload_part(b"") == b""
    for broken in (upload_piece(b"whole")[:-1], b"\x12\xff\xff\xff\xff\xff\xff", b"\x12"):
        with pytest.raises(DecodeError):
            upload_part(broken)
    with pytest.raises(BadBlob, match="cannot be read"):
        data_of(download_piece(b"whole")[:-1])


def sizes(pieces, count):
    taken = []
    for _ in range(count):
        taken.append(pieces.size)
        pieces.arrived()
    return taken


def test_pieces_grow_while_no_cut_occurs_and_begin_small_after_one():
    pieces = Pieces()
    assert sizes(pieces, 6) == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, MOST, MOST]
    pieces.cut()
    assert sizes(pieces, 6) == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, 8 * FIRST, 8 * FIRST]
    assert max(sizes(pieces, 30)) == MOST, "what was too large once is tried again"


def test_a_link_that_is_cut_again_and_again_ends_at_the_smallest_pieces():
    pieces = Pieces()
    for _ in range(5):
        sizes(pieces, 2)
        pieces.cut()
    assert sizes(pieces, 10) == [FIRST] * 10


def test_a_blob_is_read_through_its_window():
    blob = Blob.of(b"0123456789")
    assert blob.bytes() == b"0123456789"
    assert [bytes(piece) for piece in blob.pieces(4)] == [b"0123", b"4567", b"89"]
    short = Blob(blob.digest, 12, blob.window)
    with pytest.raises(BadBlob, match="a blob of 12 bytes ends after 10"):
        short.bytes()
