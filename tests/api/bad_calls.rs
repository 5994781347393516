//! Malformed calls of every RPC: wrong bytes and headers. Each returns the status that gRPC or the API documents, and
//! the connection stays open.

use crate::bad_requests::expected_result;
use crate::bad_test_data::{FieldPath, TestData, field_paths};
use crate::bad_values::reason;
use crate::contract::*;
use crate::raw;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use prost::Message;
use prost::encoding::encode_varint;
use prost_reflect::{Kind, MethodDescriptor};
use std::collections::{BTreeSet, VecDeque};
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::http::{HeaderName, HeaderValue, Method, Request};
use tonic::{Code, Status};
use tower::ServiceExt;
use tracing_subscriber::layer::SubscriberExt;

/// The expected result of a call.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// The same as that of the valid call.
    Same,
    /// OK, or an error of meterd.
    Answered,
    /// The error MESSAGE_INVALID.
    Invalid,
    /// An error of the gRPC library.
    Grpc(Code),
    /// UNIMPLEMENTED of gRPC, and this HTTP status.
    Http(u16),
}

use Expected::{Answered, Grpc, Http, Invalid, Same};

/// A malformed call.
struct MalformedCall {
    kind: String,
    request: Request<Vec<u8>>,
    expected: Expected,
}

/// A body of few frames.
struct Frames(VecDeque<Frame<Bytes>>);

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

/// Announces HTTP trailers after the request, which no gRPC client sends.
#[derive(Clone)]
struct Trailers;

/// Returns a message with gRPC's prefix.
fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    [&[flag], &(message.len() as u32).to_be_bytes()[..], message].concat()
}

pub fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn valid_call(rpc: &MethodDescriptor, body: Vec<u8>) -> Request<Vec<u8>> {
    Request::builder()
        .method(Method::POST)
        .uri(path_of(rpc).as_str())
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

/// Returns the HTTP status and the gRPC status. The status of a started subscription is OK, because it does not end.
async fn exchange(connection: &RawConnection, request: Request<Vec<u8>>, subscribes: bool) -> (u16, Option<Status>) {
    let trailers = request.extensions().get::<Trailers>().map(|_| {
        Frame::trailers(
            [(HeaderName::from_static("x-end"), HeaderValue::from_static("of the request"))].into_iter().collect(),
        )
    });
    let request =
        request.map(|bytes| Body::new(Frames([Frame::data(bytes.into())].into_iter().chain(trailers).collect())));
    let response = connection.channel.clone().oneshot(request).await.expect("the connection is open");
    let http = response.status().as_u16();
    let mut status = Status::from_header_map(response.headers());
    let mut body = response.into_body();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.expect("the stream ends normally");
        if subscribes && frame.is_data() {
            return (http, Some(Status::new(Code::Ok, "")));
        }
        status = frame.trailers_ref().and_then(Status::from_header_map).or(status);
    }
    (http, status)
}

/// Returns the key of a field and the length of its value.
fn key(number: u32, wire_type: u8, length: Option<usize>) -> Vec<u8> {
    let mut bytes = vec![];
    encode_varint(u64::from(number << 3 | u32::from(wire_type)), &mut bytes);
    if let Some(length) = length {
        encode_varint(length as u64, &mut bytes);
    }
    bytes
}

/// Returns a message with these bytes in a field.
fn at(path: &FieldPath, bytes: &[u8]) -> Vec<u8> {
    path.iter().rev().fold(bytes.to_vec(), |inner, field| [key(field.number(), 2, Some(inner.len())), inner].concat())
}

/// Returns the documented maximum size of all messages of a call together.
fn message_bytes_max(rpc: &MethodDescriptor) -> u32 {
    match rpc.name() {
        "BatchTrackUsage" => 16 << 20,
        "StreamUsage" => 256 << 10,
        _ => 1 << 20,
    }
}

/// Returns malformed and unusual bodies. `valid` is a valid message.
fn malformed_bodies(rpc: &MethodDescriptor, valid: &[u8]) -> Vec<(&'static str, Vec<u8>, Expected)> {
    let one = |bytes: &[u8]| framed(0, bytes);
    let after = |more: &[u8]| framed(0, &[valid, more].concat());
    let sent_twice = [one(valid), one(valid)].concat();
    let then_garbage = [one(valid), one(&[0])].concat();
    let groups: Vec<u8> = std::iter::repeat_n(key(2_000, 3, None), 200).flatten().collect();
    let of_no_field = rpc.input().fields().len() == 0;
    let streams = rpc.is_client_streaming();
    let unknown = [
        [key(2_000, 0, None), vec![1]].concat(),
        [key(2_001, 1, None), vec![0; 8]].concat(),
        [key(2_002, 2, Some(3)), b"abc".to_vec()].concat(),
        [key(2_003, 5, None), vec![0; 4]].concat(),
        [key(2_004, 3, None), key(1, 0, None), vec![1], key(2_004, 4, None)].concat(),
        [key(536_870_911, 0, None), vec![0xff; 9], vec![1]].concat(),
    ];
    let mut malformed_bodies = vec![
        ("body of nothing", vec![], if streams { Same } else { Invalid }),
        ("half of a prefix", vec![0, 0, 0], Invalid),
        ("prefix without its message", vec![0, 0, 0, 0, 9], Invalid),
        ("message cut in the middle", one(&[valid, b"x"].concat())[..5 + valid.len()].to_vec(), Invalid),
        ("prefix of 4 GiB", vec![0, 255, 255, 255, 255], Grpc(Code::OutOfRange)),
        (
            "prefix of one byte more than the method takes",
            raw::prefix(message_bytes_max(rpc) + 1).into(),
            Grpc(Code::OutOfRange),
        ),
        ("prefix of one byte over 16 MiB", vec![0, 1, 0, 0, 1], Grpc(Code::OutOfRange)),
        ("message of no bytes", one(&[]), Answered),
        ("unknown fields of every type", after(&unknown.concat()), Same),
        (
            "field of the wrong type",
            one(&[key(1, 5, None), vec![0; 4]].concat()),
            if of_no_field { Same } else { Invalid },
        ),
        ("field number 0", after(&[0, 0]), Invalid),
        ("field number too high", after(&[0xf8, 0xff, 0xff, 0xff, 0x7f, 0]), Invalid),
        ("wire type 6", after(&key(2_000, 6, None)), Invalid),
        ("wire type 7", after(&key(2_000, 7, None)), Invalid),
        ("number of eleven bytes", after(&[key(2_000, 0, None), vec![0xff; 10], vec![1]].concat()), Invalid),
        ("field longer than the message", after(&key(2_000, 2, Some(100))), Invalid),
        ("field longer than any message", after(&key(2_000, 2, Some(usize::MAX >> 1))), Invalid),
        ("group without its end", after(&key(2_000, 3, None)), Invalid),
        ("end of no group", after(&key(2_000, 4, None)), Invalid),
        ("groups 200 deep", after(&groups), Invalid),
        ("message and itself again", one(&[valid, valid].concat()), Answered),
        ("bytes of 0xff", one(&[0xff; 64]), Invalid),
        ("compressed flag without encoding", framed(1, valid), Grpc(Code::Internal)),
        ("compressed flag 2", framed(2, valid), Invalid),
        ("compressed flag 255", framed(255, valid), Invalid),
        ("two messages", sent_twice, if streams { Answered } else { Invalid }),
        ("message and garbage", then_garbage, Invalid),
    ];
    let mut found = vec![];
    field_paths(&rpc.input(), &[], &mut found);
    let matching = |wanted: fn(&Kind) -> bool| found.iter().find(|path| wanted(&path.last().unwrap().kind()));
    if let Some(path) = matching(|kind| *kind == Kind::String) {
        malformed_bodies.push(("text that is no UTF-8", one(&at(path, b"a\xff")), Invalid));
        malformed_bodies.push(("text with half a surrogate", one(&at(path, b"\xed\xa0\x80")), Invalid));
        malformed_bodies.push(("text with an overlong slash", one(&at(path, b"\xc0\xaf")), Invalid));
    }
    if let Some(path) = matching(|kind| matches!(kind, Kind::Message(message) if message.name() == "Struct")) {
        // Nested lists have two messages per level, and the decoder reads a hundred.
        let deep = (0..200).fold(vec![], |inner: Vec<u8>, _| {
            let list = [key(1, 2, Some(inner.len())), inner].concat();
            [key(6, 2, Some(list.len())), list].concat()
        });
        let entry = [key(1, 2, Some(1)), b"k".to_vec(), key(2, 2, Some(deep.len())), deep].concat();
        malformed_bodies.push((
            "metadata 200 deep",
            one(&at(path, &[key(1, 2, Some(entry.len())), entry].concat())),
            Invalid,
        ));
    }
    malformed_bodies
}

/// Returns calls with malformed headers and a valid body.
fn malformed_headers(rpc: &MethodDescriptor, valid: &[u8]) -> Vec<MalformedCall> {
    let good = || valid_call(rpc, framed(0, valid));
    let path = path_of(rpc).as_str().to_string();
    let mut malformed_headers = vec![];
    let mut add =
        |kind: &str, request, expected| malformed_headers.push(MalformedCall { kind: kind.into(), request, expected });
    let with = |name: &'static str, value: &[u8]| {
        let mut request = good();
        request.headers_mut().insert(name, HeaderValue::from_bytes(value).unwrap());
        request
    };
    for value in ["", "1", "S", "-1S", "+1S", "1.5S", "1x", "999999999S", " 1S", "1e3m"] {
        add(&format!("grpc-timeout {value:?}"), with("grpc-timeout", value.as_bytes()), Same);
    }
    add("grpc-timeout that is no text", with("grpc-timeout", b"\xff"), Same);
    add("longest grpc-timeout", with("grpc-timeout", b"99999999H"), Same);
    for (kind, value) in [("zstd", "zstd"), ("of no name", "x"), ("of nothing", "")] {
        let mut request = with("grpc-encoding", value.as_bytes());
        *request.body_mut() = framed(1, valid);
        add(&format!("grpc-encoding {kind}"), request, Grpc(Code::Unimplemented));
    }
    for (kind, body, expected) in [
        ("", framed(1, &gzipped(valid)), Same),
        (", not compressed", framed(0, valid), Same),
        (", no gzip", framed(1, valid), Invalid),
        (", cut", framed(1, &gzipped(valid)[..12]), Invalid),
        (", of no bytes", framed(1, &[]), Invalid),
        (", compressed garbage", framed(1, &gzipped(&[0xff; 64])), Invalid),
    ] {
        let mut request = with("grpc-encoding", b"gzip");
        *request.body_mut() = body;
        add(&format!("grpc-encoding gzip{kind}"), request, expected);
    }
    add("grpc-encoding identity", with("grpc-encoding", b"identity"), Same);
    add("grpc-accept-encoding of no name", with("grpc-accept-encoding", b"x,,;q=\xff"), Same);
    add("te gzip", with("te", b"gzip"), Same);
    let mut without_te = good();
    without_te.headers_mut().remove("te");
    add("no te", without_te, Same);
    add("x-request-id that is no text", with("x-request-id", b"\xff\xfe"), Same);
    add("x-request-id of 4,000 bytes", with("x-request-id", &[b'x'; 4_000]), Same);
    add("binary header that is no base64", with("x-some-bin", b"!!!"), Same);
    add("traceparent of no form", with("traceparent", b"00-zz"), Same);
    for value in ["application/grpc+proto", "application/grpc;charset=utf-8"] {
        add(&format!("content-type {value}"), with("content-type", value.as_bytes()), Same);
    }
    for value in ["application/json", "text/plain", "application/x-www-form-urlencoded", "application/grpcx", ""] {
        add(&format!("content-type {value:?}"), with("content-type", value.as_bytes()), Http(415));
    }
    let mut untyped = good();
    untyped.headers_mut().remove("content-type");
    add("no content-type", untyped, Http(415));
    let cut = &framed(0, &[valid, b"x"].concat())[..5 + valid.len()];
    for (kind, encoding, body, expected) in [
        ("", "identity", framed(0, valid), Same),
        (" of a compressed message", "gzip", framed(1, &gzipped(valid)), Same),
        (" of half of a prefix", "identity", vec![0, 0, 0], Invalid),
        (" of a prefix without its message", "identity", vec![0, 0, 0, 0, 9], Invalid),
        (" of a message cut in the middle", "identity", cut.to_vec(), Invalid),
        (" of a compressed message cut in the middle", "gzip", framed(1, &gzipped(valid))[..9].to_vec(), Invalid),
    ] {
        let mut request = with("grpc-encoding", encoding.as_bytes());
        *request.body_mut() = body;
        request.extensions_mut().insert(Trailers);
        add(&format!("trailers after the end{kind}"), request, expected);
    }
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::PATCH] {
        let mut request = good();
        *request.method_mut() = method.clone();
        add(&format!("method {method}"), request, Http(405));
    }
    let unimplemented = Grpc(Code::Unimplemented);
    for (kind, path, expected) in [
        ("path with a query", format!("{path}?a=b"), Same),
        ("path with a slash at its end", format!("{path}/"), unimplemented),
        ("path with two slashes", format!("/{path}"), unimplemented),
        ("path with a dot", path.replacen("/metering", "/./metering", 1), unimplemented),
        ("path with an escape", path.replacen("/metering", "/%6detering", 1), unimplemented),
        ("path in lower case", path.to_lowercase(), unimplemented),
        ("path with U+0000 escaped", format!("{path}%00"), unimplemented),
        ("path of another package", path.replacen("v1", "v2", 1), unimplemented),
        ("method of no name", path[..=path.rfind('/').unwrap()].to_string(), unimplemented),
        ("path /", "/".to_string(), unimplemented),
    ] {
        let mut request = good();
        *request.uri_mut() = path.parse().unwrap();
        add(kind, request, expected);
    }
    malformed_headers
}

/// Describes what is wrong with a response, or returns `None` if it is as expected.
fn failure_of(rpc: &MethodDescriptor, expected: Expected, http: u16, status: Option<Status>) -> Option<String> {
    let described = format!("HTTP {http}, {status:?}");
    let Some(status) = status else { return Some(described) };
    let error = ApiError::of(&status);
    let valid = match expected {
        Same => {
            reason(expected_result(rpc.name())).0 == error.reason
                && (status.code() == Code::Ok || !error.reason.is_empty())
        }
        Answered => status.code() == Code::Ok || error_rules().check(rpc.name(), error.code, &error.reason).is_ok(),
        Invalid => (error.code, &*error.reason) == (Code::InvalidArgument, "MESSAGE_INVALID"),
        Grpc(code) => error.code == code && error.is_of_grpc(),
        Http(_) => error.code == Code::Unimplemented && error.reason.is_empty(),
    };
    let http_wanted = if let Http(code) = expected { code } else { 200 };
    (http != http_wanted || !valid).then_some(described)
}

#[tokio::test]
async fn malformed_calls_get_the_status_of_the_protocol_and_keep_the_connection() {
    let watch = FailureWatch::start();
    let log = tracing::subscriber::set_default(tracing_subscriber::registry().with(watch.clone()));
    let mut data = TestData::start().await;
    let (mut kinds, mut cells, mut failures) = (BTreeSet::new(), 0, vec![]);
    for rpc in rpcs() {
        let count = malformed_bodies(&rpc, &[]).len() + malformed_headers(&rpc, &[]).len();
        for number in 0..count {
            // A unique valid message.
            let valid = data.valid(&rpc).await.encode_to_vec();
            let bad = malformed_bodies(&rpc, &valid).into_iter().map(|(kind, body, expected)| MalformedCall {
                kind: kind.into(),
                request: valid_call(&rpc, body),
                expected,
            });
            let MalformedCall { kind, request, expected } =
                bad.chain(malformed_headers(&rpc, &valid)).nth(number).unwrap();
            let (http, status) = exchange(&data.connection, request, rpc.name() == "SubscribeAlerts").await;
            cells += 1;
            failures.extend(
                failure_of(&rpc, expected, http, status)
                    .map(|failure| format!("{} {kind}, {expected:?}: {failure}", rpc.name())),
            );
            kinds.insert(kind);
        }
    }
    println!("bad calls: {} kinds, {} cells of {cells}", kinds.len(), cells - failures.len());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert_eq!((watch.panics(true), watch.errors(), data.connection.lost()), (vec![], vec![], 0));
    data.server.stop().await;
    drop(log);
}
