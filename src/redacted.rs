//! `Debug` of messages that contain secrets. It leaves the secrets out.

use crate::proto::{CreateApiKeyResponse, NotificationChannel, RotateApiKeyResponse};
use std::fmt::{Debug, Formatter, Result};

impl Debug for CreateApiKeyResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("CreateApiKeyResponse").field("api_key", &self.api_key).finish_non_exhaustive()
    }
}

impl Debug for RotateApiKeyResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut shown = f.debug_struct("RotateApiKeyResponse");
        shown.field("api_key", &self.api_key).field("old_api_key", &self.old_api_key).finish_non_exhaustive()
    }
}

impl Debug for NotificationChannel {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("NotificationChannel")
            .field("kind", &self.kind)
            .field("target", &self.target)
            .field("min_severity", &self.min_severity)
            .field("secret_count", &self.secret_count)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_shows_its_secret() {
        let token = "mtr_secret".to_string();
        let channel = NotificationChannel { secrets: vec![token.clone()], ..Default::default() };
        let created = CreateApiKeyResponse { token: token.clone(), ..Default::default() };
        let rotated = RotateApiKeyResponse { token, ..Default::default() };
        let shown = format!("{channel:?} {created:?} {rotated:?}");
        assert!(!shown.contains("mtr_secret"), "{shown}");
    }
}
