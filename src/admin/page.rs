//! What a browser sees at `/`: where the services stand, as plain HTML that asks for nothing more.

use super::{Admin, body::Asked, openapi::Problems};
use crate::control::ServiceStatus;
use axum::{
    extract::State,
    response::{Html, IntoResponse, Response},
};
use http::header;
use std::fmt::Write as _;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.4rem .8rem;border-bottom:1px solid #8886}";

/// A table of the services, without scripts.
#[utoipa::path(get, path = "/", tag = "services",
    responses((status = 200, description = "For people", body = String, content_type = "text/html"), Problems))]
pub(super) async fn show(State(admin): State<Admin>, asked: Asked) -> Response {
    let mut rows = String::new();
    for status in admin.parts.control.list() {
        if !asked.identity.may_use(status.service.as_str()) {
            continue;
        }
        let version =
            |name: Option<&crate::model::VersionName>| name.map_or("-".to_owned(), ToString::to_string);
        // Writing to a string does not fail.
        let _ = write!(
            rows,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(status.service.as_str()),
            status.phase,
            escape(&version(status.stable.as_ref())),
            escape(&version(status.canary.as_ref())),
            status.set_weight,
            escape(&message(&status)),
        );
    }
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Serin</title>\
         <meta http-equiv=\"refresh\" content=\"5\"><style>{STYLE}</style><h1>Serin</h1><table><thead><tr>\
         <th>Service</th><th>Phase</th><th>Stable</th><th>Canary</th><th>Weight</th><th>Message</th></tr></thead>\
         <tbody>{rows}</tbody></table><p>The command line does more: <code>serin get SERVICE</code>. \
         Programs read <a href=\"/openapi.json\">/openapi.json</a> and <a href=\"/v1/services\">/v1/services</a>.</p></html>"
    );
    let headers = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, Html(page)).into_response()
}

/// Where it stands, and that its alarm rings unless that says it already.
fn message(status: &ServiceStatus) -> String {
    let alarm = status.alarm.as_ref();
    let alarm = alarm.map(|alarm| format!("Alarm: {}", alarm.message));
    match alarm.filter(|alarm| !status.message.contains(alarm.as_str())) {
        Some(alarm) => format!("{}. {alarm}", status.message),
        None => status.message.clone(),
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admin::fixtures::degraded, control::AlarmStatus};

    #[test]
    fn an_alarm_is_shown_whatever_else_there_is_to_say() {
        let alarm = Some(AlarmStatus {
            since: crate::model::Timestamp::from_secs(1),
            message: "9% failed".to_owned(),
        });
        let aborted = ServiceStatus { alarm, ..degraded() };
        assert_eq!(
            message(&aborted),
            "RolloutAborted: metric \"error-rate\" failed. Alarm: 9% failed"
        );
        let held = ServiceStatus {
            message: "Alarm: 9% failed".to_owned(),
            ..aborted
        };
        assert_eq!(message(&held), "Alarm: 9% failed");
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<b a=\"x\">'&"), "&lt;b a=&quot;x&quot;&gt;&#39;&amp;");
    }
}
