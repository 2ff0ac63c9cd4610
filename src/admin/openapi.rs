//! The description that programs read: every path, body, answer and problem.

use super::{Problem, events, operate, page, probes, read, write};
use axum::Json;
use std::collections::BTreeMap;
use utoipa::{
    IntoResponses, OpenApi,
    openapi::{
        Components, ContentBuilder, Ref, RefOr, Response, ResponseBuilder, ResponsesBuilder,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "Serin",
        description = "Splits traffic between stable and canary, measures both, promotes or rolls back.\n\n\
            Every problem is `application/problem+json` (RFC 9457) with `code` and `hint`. A verb that the state does not \
            allow is 409 and lists the `legal` ones; an `If-Match` or `expect` that does not hold is 412; the same \
            `Idempotency-Key` within 24 hours does nothing and gets the same answer.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        read::list, read::status, read::metrics_window, read::analysis, read::history, read::recordings, read::stable,
        read::judges,
        write::deploy, write::endpoints, write::promote, write::abort, write::retry, write::undo, write::pause,
        write::resume, write::weight, events::follow, operate::show, operate::check, operate::reload,
        operate::test_notification, probes::livez, probes::readyz, probes::startupz, probes::metrics, probes::metrics_compat, serve, page::show
    ),
    components(schemas(Problem)),
    modifiers(&Tokens)
)]
struct Document;

struct Tokens;

impl utoipa::Modify for Tokens {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "A token of `admin.tokens`. Reads on loopback need none, the local socket never.",
            ))
            .build();
        document
            .components
            .get_or_insert_with(Components::new)
            .add_security_scheme("token", SecurityScheme::Http(bearer));
    }
}

/// The whole document.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "events", responses((status = 200, description = "OpenAPI 3.1")))]
pub(super) async fn serve() -> Json<utoipa::openapi::OpenApi> {
    Json(document())
}

type Answers = BTreeMap<String, RefOr<Response>>;

fn problems(these: &[(u16, &str)]) -> Answers {
    let content = || {
        ContentBuilder::new()
            .schema(Some(Ref::from_schema_name("Problem")))
            .build()
    };
    let builder = these
        .iter()
        .fold(ResponsesBuilder::new(), |all, (status, about)| {
            let response = ResponseBuilder::new()
                .description(*about)
                .content("application/problem+json", content());
            all.response(status.to_string(), response)
        });
    builder.build().responses.into_iter().collect()
}

const EVERYWHERE: [(u16, &str); 5] = [
    (400, "The query or a header cannot be read"),
    (401, "No token, or one that is not known"),
    (403, "The token does not allow it"),
    (421, "The `Host` is not ours"),
    (
        503,
        "Not now: the state cannot be read or stored, or Serin is stopping",
    ),
];

/// What any read may be refused with.
pub(super) struct Problems;

impl IntoResponses for Problems {
    fn responses() -> Answers {
        problems(&EVERYWHERE)
    }
}

/// What a read of one service may be refused with.
pub(super) struct ServiceProblems;

impl IntoResponses for ServiceProblems {
    fn responses() -> Answers {
        let mut all = problems(&EVERYWHERE);
        all.extend(problems(&[(404, "There is no such service")]));
        all
    }
}

/// What a verb may be refused with.
pub(super) struct VerbProblems;

impl IntoResponses for VerbProblems {
    fn responses() -> Answers {
        let mut all = ServiceProblems::responses();
        all.extend(problems(&[
            (408, "The body did not arrive in time"),
            (409, "The state does not allow it; `legal` lists what it does"),
            (412, "`If-Match` or `expect` does not hold"),
            (413, "The body is larger than 1 MiB"),
            (415, "The body is not declared as JSON"),
            (422, "What is asked makes no sense"),
        ]));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::routes::{Access, table};
    use serde_json::Value;

    fn written() -> Value {
        serde_json::to_value(document()).unwrap()
    }

    fn refs(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(name)) = fields.get("$ref") {
                    into.push(name.clone());
                }
                fields.values().for_each(|field| refs(field, into));
            }
            Value::Array(items) => items.iter().for_each(|item| refs(item, into)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let document = written();
        let mut described: Vec<String> = Vec::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                described.push(format!("{} {path}", method.to_uppercase()));
            }
        }
        let mut routed: Vec<String> = table()
            .iter()
            .map(|route| format!("{} {}", route.method, route.path))
            .collect();
        described.sort();
        routed.sort();
        assert_eq!(described, routed);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = written();
        let mut found = Vec::new();
        refs(&document, &mut found);
        assert!(found.len() > 20);
        for reference in found {
            let place = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(place).is_some(), "{reference}");
        }
    }

    #[test]
    fn every_verb_says_how_it_may_be_refused() {
        let document = written();
        for route in table() {
            let method = route.method.as_str().to_lowercase();
            let answers = &document["paths"][route.path][&method]["responses"];
            let needed: &[&str] = match route.access {
                Access::Open => &["200"],
                Access::Read => &["200", "401", "403", "421"],
                Access::Write { .. } => &["200", "401", "403", "409", "412", "415", "422", "421"],
            };
            for status in needed {
                assert!(answers.get(status).is_some(), "{method} {} {status}", route.path);
            }
        }
    }
}
