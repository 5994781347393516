//! The tokens of API keys: `mtr_<id>_<secret>`. The id has 16 hexadecimal digits. The secret has 64, which are 256 random bits.

use sha2::{Digest, Sha256};
use std::fmt::{self, Write as _};
use subtle::ConstantTimeEq;

/// The prefix of every token.
pub const PREFIX: &str = "mtr_";
const ID_DIGITS: usize = 16;
const SECRET_DIGITS: usize = 64;

/// The SHA-256 hash of a secret. The secret itself is not stored.
#[derive(Clone, Copy)]
pub struct SecretHash(pub [u8; 32]);

impl SecretHash {
    /// Hashes a secret, as the hexadecimal digits of its token.
    fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// Returns whether two hashes are equal. The comparison takes constant time.
    pub fn matches(&self, presented: &Self) -> bool {
        self.0.ct_eq(&presented.0).into()
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

/// A new token.
pub struct NewToken {
    pub key_id: String,
    pub hash: SecretHash,
    /// The token itself, for the owner of the key.
    pub token: String,
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

/// Creates a token with the cryptographic random generator of the thread, which the operating system seeds.
pub fn new() -> NewToken {
    let key_id = digits(&rand::random::<[u8; ID_DIGITS / 2]>());
    let secret = digits(&rand::random::<[u8; SECRET_DIGITS / 2]>());
    NewToken { hash: SecretHash::of(&secret), token: format!("{PREFIX}{key_id}_{secret}"), key_id }
}

/// Returns the id and the hash of the secret of a token. Returns `None` if the text does not have the form of a token.
pub fn parse(token: &str) -> Option<(&str, SecretHash)> {
    let (key_id, secret) = token.strip_prefix(PREFIX)?.split_once('_')?;
    let hexadecimal = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let well_formed = key_id.len() == ID_DIGITS && secret.len() == SECRET_DIGITS && hexadecimal(key_id);
    (well_formed && hexadecimal(secret)).then(|| (key_id, SecretHash::of(secret)))
}

/// Returns the text with the secrets of tokens removed. People paste tokens into fields that expect only an id.
pub fn without_secrets(text: &str) -> String {
    let mut rest = text;
    let mut shown = String::with_capacity(text.len());
    while let Some(at) = rest.find(PREFIX) {
        let (before, token) = rest.split_at(at + PREFIX.len());
        shown.push_str(before);
        rest = token;
        let is_digit = |byte: &u8| byte.is_ascii_hexdigit();
        let id = rest.bytes().take_while(|byte| is_digit(byte)).count();
        let secret = rest.get(id..).and_then(|rest| rest.strip_prefix('_'));
        let digits = secret.map_or(0, |secret| secret.bytes().take_while(|byte| is_digit(byte)).count());
        if digits > 0 {
            shown.push_str(&rest[..=id]);
            shown.push_str("(secret)");
            rest = &rest[id + 1 + digits..];
        }
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_matches_its_own_hash_and_no_other() {
        let (made, other) = (new(), new());
        let (key_id, hash) = parse(&made.token).unwrap();
        assert_eq!(key_id, made.key_id);
        assert!(made.hash.matches(&hash) && !made.hash.matches(&other.hash));
        assert_ne!(made.token, other.token);
        assert!(!made.token.contains(&digits(&made.hash.0)));
    }

    #[test]
    fn a_malformed_token_is_rejected() {
        let token = new().token;
        for wrong in ["", "mtr_", "mtr__", &token[..token.len() - 1], &format!("{token}0"), &token.to_uppercase()] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
        assert!(parse(&token.replace("mtr_", "mtx_")).is_none());
        assert!(parse(&token.replacen('_', "__", 1)).is_none());
    }

    proptest::proptest! {
        #[test]
        fn only_texts_in_the_form_of_a_token_are_parsed(text in "\\PC*|mtr_[0-9a-fG_]{15,17}_[0-9a-f]{63,65}|mtr_[0-9a-f]{16}_[0-9a-f]{64}") {
            let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
            let parts: Vec<&str> = text.split('_').collect();
            let well_formed = matches!(&*parts, ["mtr", id, secret]
                if id.len() == ID_DIGITS && secret.len() == SECRET_DIGITS && digits(id) && digits(secret));
            proptest::prop_assert_eq!(parse(&text).map(|(key_id, _)| key_id), well_formed.then(|| parts[1]));
        }
    }

    #[test]
    fn the_secrets_of_pasted_tokens_are_removed() {
        let made = new();
        let shown = without_secrets(&format!("{{\"keyId\":\"{}\"}} mtr_ {}", made.token, made.token));
        let expected = format!("{{\"keyId\":\"mtr_{0}_(secret)\"}} mtr_ mtr_{0}_(secret)", made.key_id);
        assert_eq!(shown, expected);
        for same in ["", "mtr_", "mtr_ab", "mtr_ab_", "mtr__", "aéb"] {
            assert_eq!(without_secrets(same), same);
        }
    }

    #[test]
    fn the_debug_output_does_not_contain_the_hash() {
        assert_eq!(format!("{:?}", new().hash), "SecretHash(…)");
    }
}
