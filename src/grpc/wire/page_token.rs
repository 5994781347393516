//! Page tokens: the cursor of the next page, signed together with the query, so that they cannot be forged or used for another
//! query.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use meterd_engine::refusal::Reason;
use meterd_engine::refusal::Refusal;
use prost::Message;
use serde::{Serialize, de::DeserializeOwned};
use sha2::Sha256;

/// Size of the signature in a token.
const SIGNATURE_BYTES: usize = 16;

/// Makes and reads the tokens of one deployment.
#[derive(Clone)]
pub struct PageTokens {
    secret: Vec<u8>,
}

impl PageTokens {
    /// Takes the secret of the deployment.
    pub fn new(secret: Vec<u8>) -> Self {
        Self { secret }
    }

    /// Returns a maker of tokens of one RPC and query. `query` is the request without page size and token.
    pub fn maker(&self, rpc: &str, query: &impl Message) -> TokenMaker {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes keys of any length");
        let query = query.encode_to_vec();
        for part in [rpc.as_bytes(), &query] {
            add_part(&mut mac, part);
        }
        TokenMaker(mac)
    }

    /// Returns the token of a cursor. `query` is the request without page size and token.
    pub fn make(&self, rpc: &str, query: &impl Message, cursor: &impl Serialize) -> String {
        self.maker(rpc, query).make(cursor)
    }

    /// Returns the cursor of a token of this RPC and query, or `None` for the first page.
    pub fn read<C: DeserializeOwned>(
        &self,
        rpc: &str,
        query: &impl Message,
        token: &str,
    ) -> Result<Option<C>, Refusal> {
        if token.is_empty() {
            return Ok(None);
        }
        self.cursor(rpc, query, token).map(Some).ok_or_else(|| {
            let violation = meterd_engine::refusal::Violation::new(
                "page_token",
                "must be the next_page_token of this same request; begin again without it",
            );
            Refusal::invalid(Reason::PageTokenInvalid, vec![violation])
        })
    }

    /// Returns the cursor of a token, if it belongs to this RPC and query.
    pub fn cursor<C: DeserializeOwned>(&self, rpc: &str, query: &impl Message, token: &str) -> Option<C> {
        let token = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (signature, cursor) = token.split_at_checked(SIGNATURE_BYTES)?;
        let expected = self.maker(rpc, query).signature(cursor);
        // All bytes are compared, so that the time does not depend on where they differ.
        let differs = signature.iter().zip(expected).fold(0, |differs, (left, right)| differs | (left ^ right));
        if differs != 0 {
            return None;
        }
        serde_json::from_slice(cursor).ok()
    }
}

/// Makes tokens of one RPC and query. The part that does not change is already signed.
#[derive(Clone)]
pub struct TokenMaker(Hmac<Sha256>);

impl TokenMaker {
    fn signature(&self, cursor: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut mac = self.0.clone();
        add_part(&mut mac, cursor);
        let mut signature = [0; SIGNATURE_BYTES];
        signature.copy_from_slice(&mac.finalize().into_bytes()[..SIGNATURE_BYTES]);
        signature
    }

    /// Returns the token of a cursor.
    pub fn make(&self, cursor: &impl Serialize) -> String {
        let cursor = serde_json::to_vec(cursor).expect("cursors are plain data");
        let mut token = self.signature(&cursor).to_vec();
        token.extend(cursor);
        URL_SAFE_NO_PAD.encode(token)
    }
}

/// Signs a part with its length, so that different lists of parts have different signatures.
fn add_part(mac: &mut Hmac<Sha256>, part: &[u8]) {
    mac.update(&(part.len() as u64).to_le_bytes());
    mac.update(part);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ListClientsRequest;

    proptest::proptest! {
        #[test]
        fn any_text_is_no_token(text in "\\PC*|[A-Za-z0-9_-]{0,80}=*", bytes in proptest::collection::vec(0u8.., 0..64)) {
            let (tokens, query) = (PageTokens::new(vec![7; 32]), ListClientsRequest::default());
            for text in [text, URL_SAFE_NO_PAD.encode(bytes)] {
                proptest::prop_assert_eq!(tokens.cursor::<serde_json::Value>("ListClients", &query, &text), None);
            }
        }
    }

    #[test]
    fn a_token_is_good_for_its_query_only_and_no_bit_of_it_can_be_changed() {
        let tokens = PageTokens::new(vec![7; 32]);
        let query = ListClientsRequest::default();
        let token = tokens.make("ListClients", &query, &"acme");
        assert_eq!(tokens.read::<String>("ListClients", &query, &token).unwrap().as_deref(), Some("acme"));
        assert!(tokens.read::<String>("ListServices", &query, &token).is_err());
        let other = ListClientsRequest { page_size: 1, ..query.clone() };
        assert!(tokens.read::<String>("ListClients", &other, &token).is_err());
        assert!(PageTokens::new(vec![8; 32]).read::<String>("ListClients", &query, &token).is_err());
        let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(tokens.read::<String>("ListClients", &query, &URL_SAFE_NO_PAD.encode(forged)).is_err(), "{bit}");
        }
        for text in ["", "x", "!!!", &token[1..]] {
            assert!(text.is_empty() || tokens.read::<String>("ListClients", &query, text).is_err());
        }
    }
}
