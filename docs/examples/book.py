"""Books a seat from Python, with nothing of Boxoffice but its contracts. In a clone, beside a `cargo run`, with bash:

    pip install grpcio grpcio-tools grpcio-status
    mkdir generated
    python -m grpc_tools.protoc -I proto --python_out=generated --grpc_python_out=generated proto/boxoffice/*/v1/*.proto
    read -r EMAIL PASSWORD < <(grep ^cho data/demo.txt)
    EMAIL=$EMAIL PASSWORD=$PASSWORD PYTHONPATH=generated python docs/examples/book.py
"""

import os
import sys
import uuid

import grpc
from boxoffice.booking.v1 import booking_pb2, booking_service_pb2, booking_service_pb2_grpc
from boxoffice.concert.v1 import concert_service_pb2, concert_service_pb2_grpc
from boxoffice.user.v1 import user_service_pb2, user_service_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

# In seconds. No method takes longer than its contract says; this is for a network that swallows the answer.
TIMEOUT = 10


def channel(service, port):
    address = os.environ.get(f"{service}_URL", f"http://127.0.0.1:{port}")
    return grpc.insecure_channel(address.removeprefix("http://"))


def refusal(error):
    """Why a call was refused: its ErrorInfo is for programs, and docs/ERRORS.md has the reasons."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            return f"refused: {error.code().name} {info.domain} {info.reason} {dict(info.metadata)}"
    return f"not answered: {error.code().name} {error.details()}"


def book():
    sessions = user_service_pb2_grpc.SessionServiceStub(channel("USER", 50051))
    concerts = concert_service_pb2_grpc.ConcertServiceStub(channel("CONCERT", 50052))
    booking_channel = channel("BOOKING", 50053)
    holds = booking_service_pb2_grpc.HoldServiceStub(booking_channel)
    bookings = booking_service_pb2_grpc.BookingServiceStub(booking_channel)

    login = user_service_pb2.CreateSessionRequest(email=os.environ["EMAIL"], password=os.environ["PASSWORD"])
    session = sessions.CreateSession(login, timeout=TIMEOUT)
    as_fan = {"timeout": TIMEOUT, "metadata": [("authorization", f"Bearer {session.access_token}")]}

    concert = concerts.ListConcerts(concert_service_pb2.ListConcertsRequest(), timeout=TIMEOUT).concerts[0]
    print(f"on sale: {concert.title}")

    # The key makes a request safe to send again: after a broken connection, the same request gets the same answer.
    wish = booking_service_pb2.CreateHoldRequest(
        concert_id=concert.concert_id,
        best_available=booking_service_pb2.BestAvailable(section_id="A", quantity=1),
        request_id=str(uuid.uuid4()),
    )
    hold = holds.CreateHold(wish, **as_fan).hold
    assert holds.CreateHold(wish, **as_fan).hold == hold
    seat_ids = [seat.seat_id for seat in hold.seats]
    print(f"held: {', '.join(seat_ids)}, {hold.total.minor_units} {hold.total.currency_code}")

    order = booking_service_pb2.CreateBookingRequest(
        hold_id=hold.hold_id,
        payment_method=booking_pb2.PAYMENT_METHOD_WALLET,
        request_id=str(uuid.uuid4()),
    )
    booking = bookings.CreateBooking(order, **as_fan).booking
    print(f"booked: {booking_pb2.BookingState.Name(booking.state)}")

    # Nobody can have the same seat again.
    try:
        again = booking_service_pb2.CreateHoldRequest(
            concert_id=concert.concert_id, seat_ids=seat_ids, request_id=str(uuid.uuid4())
        )
        holds.CreateHold(again, **as_fan)
    except grpc.RpcError as error:
        print(refusal(error))


try:
    book()
except grpc.RpcError as error:
    sys.exit(refusal(error))
