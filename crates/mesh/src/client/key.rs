//! Idempotency keys: a request that may carry one and doesn't is given one. Every try of the call then has the same key, so
//! that the service does what it is asked once.

use boxoffice_proto::policy::Method;
use bytes::{BufMut, Bytes, BytesMut};
use prost::{
    DecodeError,
    encoding::{DecodeContext, decode_key, skip_field, string},
};
use uuid::Uuid;

/// What stands before a message in gRPC, in bytes: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// A request of the method, as gRPC frames it, with a key if it may carry one.
pub(super) fn with_key(method: &Method, request: Bytes) -> Bytes {
    let Some(field) = method.key_field else { return request };
    let Some((&[0, ..], message)) = request.split_first_chunk::<PREFIX>() else { return request };
    // What can't be read is left to the service, which says what is wrong with it.
    if has_field(message, field).unwrap_or(true) {
        return request;
    }
    let key = Uuid::new_v4().to_string();
    let length = message.len() + string::encoded_len(field, &key);
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).expect("a message that was framed, and a few bytes"));
    framed.put_slice(message);
    string::encode(field, &key, &mut framed);
    framed.freeze()
}

fn has_field(mut message: &[u8], field: u32) -> Result<bool, DecodeError> {
    while !message.is_empty() {
        let (number, wire_type) = decode_key(&mut message)?;
        if number == field {
            return Ok(true);
        }
        skip_field(wire_type, number, &mut message, DecodeContext::default())?;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use boxoffice_proto::{
        booking::v1::{BestAvailable, CreateHoldRequest, GetHoldRequest},
        policy,
    };
    use prost::Message;

    use super::*;

    const CREATE_HOLD: &str = "/boxoffice.booking.v1.HoldService/CreateHold";
    const GET_HOLD: &str = "/boxoffice.booking.v1.HoldService/GetHold";

    fn sent(path: &str, message: &[u8]) -> Bytes {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        with_key(policy::method(path).unwrap(), [&[0], &length[..], message].concat().into())
    }

    fn wish(request_id: &str) -> CreateHoldRequest {
        CreateHoldRequest {
            concert_id: "cnc_1".into(),
            seat_ids: vec!["A-1-1".into(), "A-1-2".into()],
            best_available: Some(BestAvailable { section_id: "A".into(), quantity: 2, accessible: true }),
            request_id: request_id.into(),
        }
    }

    #[test]
    fn a_request_without_a_key_gets_a_new_one_and_is_otherwise_the_same() {
        let mut keys = Vec::new();
        for _ in 0..2 {
            let sent = sent(CREATE_HOLD, &wish("").encode_to_vec());
            let length = u32::from_be_bytes(sent[1..PREFIX].try_into().unwrap());
            assert_eq!((sent[0], length as usize), (0, sent.len() - PREFIX));
            let message = CreateHoldRequest::decode(&sent[PREFIX..]).unwrap();
            Uuid::parse_str(&message.request_id).expect("a key");
            assert_eq!(message, wish(&message.request_id));
            keys.push(message.request_id);
        }
        assert_ne!(keys[0], keys[1]);
    }

    #[test]
    fn a_request_that_has_a_key_or_takes_none_stays_as_it_is() {
        let own = wish("mine").encode_to_vec();
        assert_eq!(sent(CREATE_HOLD, &own)[PREFIX..], own);
        let reading = GetHoldRequest { hold_id: "hld_1".into() }.encode_to_vec();
        assert_eq!(sent(GET_HOLD, &reading)[PREFIX..], reading);
    }

    #[test]
    fn what_can_not_be_read_is_sent_as_it_is() {
        let method = policy::method(CREATE_HOLD).unwrap();
        for request in [&[][..], &[0, 0, 0], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 2, 0xff, 0xff]] {
            assert_eq!(with_key(method, Bytes::copy_from_slice(request)), request);
        }
    }
}
