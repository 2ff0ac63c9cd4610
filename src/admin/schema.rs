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
    ($name:ty, $about:literal, $example:literal $(, $format:expr)?) => {
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .description(Some($about))
                    .examples([serde_json::Value::from($example)])
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
    "order-gateway"
);
text!(
    VersionName,
    "The release name a user gave: 1 to 128 of A-Z, a-z, 0-9 and `._+:@-`.",
    "v42"
);
text!(Span, "A length of time.", "5m");
text!(
    EndpointUrl,
    "`http://`, `https://`, `h2c://` or `unix:` and where it listens.",
    "http://127.0.0.1:9002"
);
text!(
    Timestamp,
    "A moment, RFC 3339, UTC.",
    "2026-01-02T10:41:07.000Z",
    KnownFormat::DateTime
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
    fn every_example_reads_as_the_type_it_stands_for() {
        fn example<T: PartialSchema + serde::de::DeserializeOwned>() {
            let schema = serde_json::to_value(T::schema()).unwrap();
            let items = schema["oneOf"].as_array().cloned().unwrap_or(vec![schema]);
            for item in items {
                serde_json::from_value::<T>(item["examples"][0].clone()).unwrap();
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
