//! How names, weights, spans and moments look in the OpenAPI document.
//!
//! They read and write themselves, so nothing can be derived; what is said here is checked by the tests below.

use crate::model::{EndpointUrl, ServiceName, Span, Timestamp, VersionName, Weight};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        KnownFormat, OneOfBuilder, RefOr,
        schema::{ObjectBuilder, Schema, SchemaFormat, Type},
    },
};

macro_rules! text {
    ($name:ty, $about:literal, $example:literal $(, pattern $pattern:literal)? $(, format $format:expr)?) => {
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .description(Some($about))
                    .examples([serde_json::Value::from($example)])
                    $(.pattern(Some($pattern)))?
                    $(.format(Some(SchemaFormat::KnownFormat($format))))?
                    .build()
                    .into()
            }
        }
        impl ToSchema for $name {}
    };
}

text!(
    ServiceName,
    "1 to 63 of a-z, 0-9, `-`, `_` and `.`, starting and ending with a letter or digit.",
    "order-gateway",
    pattern "^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
);
text!(
    VersionName,
    "The release name a user gave: 1 to 128 of A-Z, a-z, 0-9 and `._+:@-`.",
    "v42",
    pattern "^[A-Za-z0-9][A-Za-z0-9._+:@-]{0,127}$"
);
text!(
    Span,
    "A length of time: `250ms`, `30s`, `1h30m`, or a whole number of seconds.",
    "5m",
    pattern "^([0-9]{1,9}|([0-9]{1,9}(\\.[0-9]{1,9})?(us|µs|ms|s|m|h|d))+)$"
);
text!(
    EndpointUrl,
    "`http://`, `https://`, `h2c://`, `unix:` or `unix+h2c:` and where it listens.",
    "http://127.0.0.1:9002",
    pattern "^((https?|h2c)://([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?/?|unix(\\+h2c)?:/.{1,106})$"
);
text!(
    Timestamp,
    "A moment, RFC 3339, UTC.",
    "2026-01-02T10:41:07.000Z",
    format KnownFormat::DateTime
);

impl PartialSchema for Weight {
    fn schema() -> RefOr<Schema> {
        let percent = ObjectBuilder::new()
            .schema_type(Type::Number)
            .minimum(Some(0))
            .maximum(Some(100))
            .examples([serde_json::Value::from(5)]);
        let fraction = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some(
                "^([0-9]{1,3}(\\.[0-9]{1,7})?%?|[0-9]{1,9}/[1-9][0-9]{0,8})$",
            ))
            .examples([serde_json::Value::from("1/3")]);
        let weight = OneOfBuilder::new()
            .description(Some(
                "A percentage (5, 0.01), or an exact fraction of the whole as text.",
            ))
            .item(percent)
            .item(fraction)
            .build();
        RefOr::T(Schema::OneOf(weight))
    }
}
impl ToSchema for Weight {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_fits_its_pattern_and_reads_as_the_type_it_stands_for() {
        fn example<T: PartialSchema + serde::de::DeserializeOwned>() {
            let schema = serde_json::to_value(T::schema()).unwrap();
            let items = schema["oneOf"].as_array().cloned().unwrap_or(vec![schema]);
            for item in items {
                serde_json::from_value::<T>(item["examples"][0].clone()).unwrap();
                let Some(pattern) = item["pattern"].as_str() else {
                    continue;
                };
                let pattern = regex::Regex::new(pattern).unwrap();
                assert!(pattern.is_match(item["examples"][0].as_str().unwrap()));
                for bad in ["", " ", "a b", "\u{e9}", "-"] {
                    assert!(!pattern.is_match(bad), "{pattern}: {bad}");
                    assert!(serde_json::from_value::<T>(bad.into()).is_err(), "{bad}");
                }
            }
        }
        example::<ServiceName>();
        example::<VersionName>();
        example::<Span>();
        example::<Timestamp>();
        example::<Weight>();
        example::<EndpointUrl>();
    }
}
