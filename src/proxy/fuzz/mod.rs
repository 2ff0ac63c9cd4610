//! What must hold for any bytes that a client sends: the properties that fuzzers and tests hold them to.
//!
//! Each function takes an input apart in the way written at it and panics where a promise is broken. `fuzz/` calls them
//! with libFuzzer, the tests below with the checked-in corpus (`model::replay`).

mod cookies;
mod forwarded;
mod frames;
mod head;
mod host;
mod proxy_protocol;

pub use cookies::cookies;
pub use forwarded::forwarded;
pub use frames::frames;
pub use host::host;
pub use proxy_protocol::proxy_protocol;

#[cfg(test)]
mod tests {
    use crate::model::replay::replay;

    #[test]
    fn what_is_accepted_has_one_host_one_framing_and_one_path_for_every_reader() {
        replay("host", 20_000, super::host);
    }

    #[test]
    fn a_cookie_is_the_first_well_formed_one_however_the_line_is_cut() {
        replay("cookies", 20_000, super::cookies);
    }

    #[test]
    fn forwarded_fields_never_say_more_than_a_trusted_peer_has_said() {
        replay("forwarded", 20_000, super::forwarded);
    }

    #[test]
    fn frames_are_the_same_however_the_bytes_are_cut() {
        replay("frames", 20_000, super::frames);
    }

    #[test]
    fn a_header_of_the_proxy_protocol_names_one_client_in_whatever_pieces_it_comes() {
        replay("proxy_protocol", 5000, super::proxy_protocol);
    }
}
