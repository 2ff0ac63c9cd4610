//! The data plane, driven from outside: the built binary, real sockets, a client that counts.
//!
//! # Faults
//!
//! Every fault that a proxy must survive, with the number that is promised for it and the tests that hold it: their short
//! form is in `tests/run`, and `benches/faults` reads this table and runs every test in it in its full form.
//!
//! | # | fault | promised | tests |
//! |---|---|---|---|
//! | 1 | an endpoint is killed | 0 errors | `health::one_of_two_that_is_gone_costs_no_client_an_error_and_is_back_when_it_answers`, `hard_failure::one_dead_endpoint_of_several_is_no_bad_release` |
//! | 2 | killed with requests in flight | GET 0; POST at most what was in flight, one 502 each | `health::of_requests_in_flight_at_a_kill_those_that_may_be_repeated_are_answered`, `hard_failure::whatever_was_in_flight_is_repeated_on_stable_or_answered_once_with_502`, `hard_failure::the_only_canary_killed_at_five_percent_under_load_costs_at_most_what_it_had_in_flight` |
//! | 3 | killed in the middle of a response | none of them looks whole | `protocols::an_answer_that_breaks_off_never_looks_whole`, `streaming::an_answer_that_is_given_up_never_looks_whole`, `pairs::every_pair_of_protocols_carries_every_kind_of_exchange` |
//! | 4 | reset right after the head | as 3 | `protocols::an_answer_that_breaks_off_never_looks_whole`, `ejection::an_endpoint_that_breaks_off_its_answers_is_ejected_by_its_rate_as_well` |
//! | 5 | a port that refuses | 0 errors; 503 or 502 at once when all do | `health::one_of_two_that_is_gone_costs_no_client_an_error_and_is_back_when_it_answers`, `health::when_every_endpoint_refuses_clients_are_told_at_once`, `hard_failure::a_canary_of_many_endpoints_that_all_die_costs_nobody_an_error` |
//! | 6 | half-open, packets dropped, silence | one connect timeout; one 504 for each open connection; nothing left in the pool | `unreachable::an_endpoint_that_drops_the_first_packet_adds_at_most_the_connect_timeout`, `unreachable::who_is_silent_on_a_kept_connection_is_answered_for_with_504_and_its_connection_is_never_used_again`, `unreachable::a_firewall_that_begins_to_drop_costs_each_open_connection_one_504_and_nobody_else_an_error`, `health::an_endpoint_that_drops_connections_delays_by_the_connect_timeout_and_costs_no_error` |
//! | 7 | a version that drips | the other's p99 is within 10 % (`benches/faults` measures it); a total limit cuts | `slow::a_version_that_drips_goes_on_while_bytes_flow_shows_in_its_own_latency_and_slows_no_other_down`, `slow::a_drip_is_cut_when_the_whole_request_has_a_limit_and_never_looks_whole` |
//! | 8 | a slow reader | less than 256 KiB each; closed after the write stall | `memory::a_client_that_does_not_read_holds_less_than_256_kib_over_http1_and_for_each_stream_of_http2`, `protocols::a_reader_that_does_not_read_costs_no_memory_and_gets_everything_later`, `timeouts::a_client_that_reads_nothing_is_closed_after_the_write_stall` |
//! | 9 | 1,000 slow senders | 0 errors elsewhere, places back in 10 s | `slow::a_thousand_clients_that_never_finish_their_heads_cost_the_others_nothing_and_their_places_are_back_in_ten_seconds` |
//! | 10 | a client leaves while it sends | no failure of the version | `pairs::every_pair_of_protocols_carries_every_kind_of_exchange`, `streaming::an_upload_that_is_given_up_never_looks_whole` |
//! | 11 | a client leaves while it waits | the same | `protocols::a_client_that_goes_away_frees_the_version_at_once`, `metrics::a_client_that_goes_away_is_a_499_and_no_verdict_on_the_version` |
//! | 12 | name servers fail | 0 errors | `dns::a_name_server_that_fails_leaves_the_last_good_addresses_in_use`, `dns::a_version_whose_name_has_no_address_is_not_ready_and_serves_as_soon_as_it_has_one` |
//! | 13 | an address changes | 0 errors | `dns::every_address_of_a_name_gets_its_share_and_a_change_is_followed_without_an_error` |
//! | 14 | no descriptors | no spinning, nobody blamed, served again at once | `descriptors::without_a_single_file_left_nothing_spins_and_nobody_is_blamed`, `descriptors::beyond_the_cap_clients_are_told_to_come_again_and_operators_are_served_as_ever` |
//! | 15 | 10,000 idle and 10,000 active connections | 0 errors, an idle one takes at most 30 KiB, with TLS 60 KiB | `idle::ten_thousand_that_are_idle_take_at_most_thirty_kib_each_and_sixty_with_tls`, `idle::ten_thousand_idle_ones_and_ten_thousand_requests_in_flight_get_all_their_answers`, `idle::who_has_waited_for_long_is_served_and_closed_as_anybody_else`, `memory::a_client_that_waits_with_an_open_connection_costs_little` |
//! | 16 | broken, cut off, missing and hasty configuration files | 0 errors, the last good one holds | `lifecycle::a_file_that_cannot_be_used_changes_nothing_and_is_told_of`, `lifecycle::of_a_hundred_files_a_second_half_of_them_cut_off_the_last_one_holds_and_no_client_notices`; links as Kubernetes swaps them: `tests/acceptance/reload.rs` |
//! | 17 | reloads and weight changes under load | 0 errors, the split's bound at each | `lifecycle::a_hundred_reloads_and_weight_changes_cost_no_client_an_error`, `lifecycle::services_that_come_go_and_are_renamed_are_served_throughout` |
//! | 18 | SIGTERM under load | 0 errors | `lifecycle::a_graceful_stop_under_load_loses_nothing_whatever_clients_speak`, `lifecycle::whoever_was_let_in_before_a_graceful_stop_is_answered_and_nobody_is_reset`, `lifecycle::readiness_ends_first_then_new_connections_then_what_is_in_flight` |
//! | 19 | SIGHUP | reloads, never ends | `systemd::systemd_is_told_of_readiness_reloads_life_and_the_end`; also `tests/acceptance/reload.rs` |
//! | 20 | SIGKILL, and started again on the same socket | at most what was in flight; the queue loses nothing | `systemd::a_kill_and_a_start_under_load_cost_at_most_what_was_in_flight_and_the_queue_none` |
//! | 21 | kept connections close as they are used | GET 0 of 1,000,000 | `protocols::a_version_that_closes_idle_connections_as_they_are_reused_costs_no_get_an_error`, `protocols::a_version_that_recycles_its_connections_costs_nobody_an_error` |
//! | 22 | a version never says 100 | 0 errors | `streaming::a_version_that_never_says_100_still_gets_the_body` |
//! | 23 | a final answer instead of 100 | 0 errors after it | `streaming::a_final_answer_instead_of_100_is_passed_on_and_no_body_is_asked_for` |
//! | 24 | endless heads and interim answers | 502 or 504, bounded | `bad_answer::no_bad_answer_reaches_a_client_or_the_next_one` |
//! | 25 | the wall clock jumps by hours | 0 errors; timers and pauses as ever | `clock::a_wall_clock_that_jumps_an_hour_either_way_costs_no_error_and_moves_no_timer_and_no_rollout` |
//! | 26 | scrapes that nobody reads, an API without a pause | 0 errors, the p99 is at most 5 % above (`benches/faults` measures it) | `slow::readers_of_metrics_who_do_not_read_and_an_api_without_a_pause_cost_no_client_an_error`, `priority::workers_come_before_every_other_thread`, `priority::who_scrapes_waits_for_who_scraped_before_so_that_few_threads_are_busy_with_it` |
//! | 27 | a full disk | 0 errors, each lost line counted | `access_log::a_full_disk_costs_lines_and_no_request`, `access_log::a_disk_that_fills_up_under_load_costs_exactly_the_lines_that_do_not_fit_until_there_is_room`; the state: `tests/acceptance/disk.rs` |
//! | 28 | a certificate half written or expired | 0 errors, the old one is served | `tls::a_renewed_certificate_is_served_and_a_bad_one_never` |
//! | 29 | a panic | one request over HTTP/2, one connection over HTTP/1.1; counted | not from outside: `src/proxy/guard.rs`, `src/proxy/streams.rs` |
//! | 30 | memory near its limit | not killed | `group::where_memory_is_limited_stalled_clients_are_no_more_than_it_is_enough_for_and_nobody_is_killed` |
//! | | bodies of 1 GiB, both ways | at most 16 MiB more | `memory::a_large_body_costs_no_more_memory_than_a_small_one_either_way` |
//! | | no local ports | a local error, not the version's | `unreachable::a_machine_without_a_free_port_is_not_the_versions_fault` |
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

#[path = "../support/mod.rs"]
mod support;

mod access_log;
mod bad_answer;
mod bad_input;
mod bad_input_http2;
mod checks;
mod clients;
mod clock;
mod descriptors;
mod differential;
mod dns;
mod ejection;
mod ends;
mod forwarded;
mod group;
mod hard_failure;
mod health;
mod http2;
mod idle;
mod large_heads;
mod lifecycle;
mod limits;
mod memory;
mod metrics;
mod pairs;
mod priority;
mod protocols;
mod proxy_protocol;
mod retries;
mod rewrite;
mod slow;
mod split;
mod streaming;
mod streams;
mod systemd;
mod timeouts;
mod tls;
mod tracing;
mod trust;
mod unix;
mod unreachable;
mod upgrades;
mod upstream_tls;
mod withdrawn;

#[test]
fn every_test_that_the_table_of_faults_names_is_there() {
    let table = include_str!("main.rs")
        .lines()
        .take_while(|line| line.starts_with("//!"));
    let mut named = 0;
    for quoted in table.flat_map(|line| line.split('`').skip(1).step_by(2)) {
        if let Some((module, test)) = quoted.split_once("::") {
            let path = format!("{}/tests/data_plane/{module}.rs", env!("CARGO_MANIFEST_DIR"));
            let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(
                source.contains(&format!("fn {test}()")),
                "{path} has no test `{test}`"
            );
            named += 1;
        }
    }
    assert!(named > 30, "{named}");
}
