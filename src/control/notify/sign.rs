//! The signature of a message, by Standard Webhooks: who knows the key can tell that it comes from here, and when.

use crate::config::SigningSecret;
use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;

/// The headers of one attempt. `at` is in seconds since 1970.
pub(super) fn headers(
    secret: Option<&SigningSecret>,
    id: &str,
    at: u64,
    body: &str,
) -> Vec<(String, String)> {
    let mut headers = vec![
        ("webhook-id".to_owned(), id.to_owned()),
        ("webhook-timestamp".to_owned(), at.to_string()),
    ];
    headers.extend(secret.map(|secret| ("webhook-signature".to_owned(), signature(secret, id, at, body))));
    headers
}

/// `v1,` and the HMAC-SHA256 of id, time and body in base64.
fn signature(secret: &SigningSecret, id: &str, at: u64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
    let tag = hmac::sign(&key, format!("{id}.{at}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(tag.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_one_of_the_standards_own_libraries() {
        // The vector that the libraries of Standard Webhooks are tested with.
        let secret = SigningSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let headers = headers(
            Some(&secret),
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(
            headers[2],
            (
                "webhook-signature".to_owned(),
                "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=".to_owned()
            )
        );
        assert_eq!(headers[1].1, "1614265330");
    }

    #[test]
    fn without_a_key_there_is_no_signature() {
        let headers = headers(None, "msg_1", 1, "{}");
        assert_eq!(headers.len(), 2);
    }
}
