//! The reading verbs: `get`, `history`, `events`, `explain`.

use super::{
    args::{EventsArgs, Format, GetArgs, HistoryArgs, OneArgs},
    client::{Ask, Client, NoAnswer, segment},
    exit::{Exit, Failure},
    explain::explain,
    now,
    out::Out,
    render,
};
use crate::{
    admin::ServiceList,
    control::{History, MetricsWindow, ServiceStatus, StoredEvent},
};
use http_body_util::BodyExt;
use serde::Serialize;
use std::time::Duration;
use tokio::time::Instant;

/// How often `--watch` looks.
const LOOK: Duration = Duration::from_secs(1);
/// How long Serin may be away while somebody watches: a restart.
const AWAY: Duration = Duration::from_secs(60);
/// The longest line of an event stream.
const LONGEST: usize = 1024 * 1024;
/// Moves the cursor home and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn of(service: &str, rest: &str) -> Ask {
    Ask::get(format!("/v1/services/{}{rest}", segment(service)))
}

/// `serin get`.
pub(super) async fn get(args: &GetArgs, out: &mut Out) -> Result<Exit, Failure> {
    let client = Client::of(&args.target)?;
    if !args.watch {
        out.print(look(&client, args).await?.whole);
        return Ok(Exit::Reached);
    }
    let mut shown = String::new();
    let mut answered = Instant::now();
    loop {
        match look(&client, args).await {
            Ok(seen) => {
                answered = Instant::now();
                if out.is_terminal() && args.output != Format::Json {
                    out.print(format!("{CLEAR}{}", seen.whole));
                } else if seen.brief != shown {
                    out.print(&seen.brief);
                    shown = seen.brief;
                }
            }
            Err(NoAnswer::Broken(_)) if !shown.is_empty() && answered.elapsed() < AWAY => {}
            Err(error) => return Err(error.into()),
        }
        if out.is_closed() {
            return Ok(Exit::Reached);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is shown, and the part of it whose change is worth a line.
struct Seen {
    whole: String,
    brief: String,
}

async fn look(client: &Client, args: &GetArgs) -> Result<Seen, NoAnswer> {
    let Some(service) = &args.service else {
        let all: ServiceList = client.ask(&Ask::get("/v1/services")).await?;
        let whole = match args.output {
            Format::Json => json(&all) + "\n",
            Format::Text | Format::Github => render::list(&all.services),
        };
        let brief = whole.clone();
        return Ok(Seen { whole, brief });
    };
    let status: ServiceStatus = client.ask(&of(service, "")).await?;
    if args.output == Format::Json {
        let whole = json(&status) + "\n";
        let brief = serde_json::to_string(&status).unwrap_or_default() + "\n";
        return Ok(Seen { whole, brief });
    }
    // What embellishes may be missing; what stands does not depend on it.
    let window: Option<MetricsWindow> = client.ask(&of(service, "/metrics?window=1m")).await.ok();
    let history: Option<History> = client.ask(&of(service, "/history?limit=3")).await.ok();
    let events = history.map(|history| history.events).unwrap_or_default();
    Ok(Seen {
        whole: render::status(&status, window.as_ref(), &events, now()),
        brief: format!("{}  {}\n", status.service, render::brief(&status)),
    })
}

/// `serin explain`.
pub(super) async fn explain_service(args: &OneArgs, out: &mut Out) -> Result<Exit, Failure> {
    let client = Client::of(&args.target)?;
    let status: ServiceStatus = client.ask(&of(&args.service, "")).await?;
    out.print(explain(&status, now()));
    Ok(Exit::Reached)
}

/// `serin history`.
pub(super) async fn history(args: &HistoryArgs, out: &mut Out) -> Result<Exit, Failure> {
    let client = Client::of(&args.target)?;
    let path = format!("/history?limit={}", args.limit);
    let history: History = client.ask(&of(&args.service, &path)).await?;
    if args.output == Format::Json {
        out.line(json(&history));
        return Ok(Exit::Reached);
    }
    out.line("rollouts");
    for rollout in &history.rollouts {
        let ended = rollout
            .ended
            .map_or("going on".to_owned(), |ended| format!("ended {ended}"));
        out.line(format!(
            "  {}  {}  attempt {}  by {}  began {}  {ended}",
            rollout.id, rollout.version, rollout.attempt, rollout.actor, rollout.started
        ));
    }
    out.line("decisions");
    for event in &history.events {
        out.line(format!("  {}", render::event(event)));
    }
    out.line("attempts");
    for attempt in &history.attempts {
        let how = attempt
            .refused
            .as_ref()
            .map_or("allowed".to_owned(), |code| format!("refused ({code})"));
        let why = attempt
            .caller
            .reason
            .as_ref()
            .map_or(String::new(), |reason| format!(": {reason}"));
        let line = format!(
            "  {}  {}  {how}  by {} from {}{why}",
            attempt.at, attempt.verb, attempt.caller.actor, attempt.caller.source
        );
        out.line(render::plain(&line));
    }
    Ok(Exit::Reached)
}

/// `serin events`: follows until nobody reads or Serin stays away.
pub(super) async fn events(args: &EventsArgs, out: &mut Out) -> Result<Exit, Failure> {
    let client = Client::of(&args.target)?;
    let mut last = args.after;
    let mut heard: Option<Instant> = None;
    loop {
        let mut query = form_urlencoded::Serializer::new(String::new());
        if let Some(service) = &args.service {
            query.append_pair("service", service);
        }
        if let Some(last) = last {
            query.append_pair("after", &last.to_string());
        }
        match client
            .open(&Ask::get(format!("/v1/events?{}", query.finish())))
            .await
        {
            Ok(response) => {
                heard = Some(Instant::now());
                follow(response.into_body(), args.output, &mut last, out).await;
                if out.is_closed() {
                    return Ok(Exit::Reached);
                }
            }
            Err(NoAnswer::Broken(failure)) => {
                if heard.is_none_or(|heard| heard.elapsed() > AWAY) {
                    return Err(failure);
                }
            }
            Err(refused @ NoAnswer::Refused(_)) => return Err(refused.into()),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Prints events until the stream ends.
async fn follow(mut body: hyper::body::Incoming, format: Format, last: &mut Option<u64>, out: &mut Out) {
    let mut buffer = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        buffer.extend_from_slice(&data);
        for event in complete(&mut buffer) {
            *last = Some(event.id);
            match format {
                Format::Json => out.line(serde_json::to_string(&event).unwrap_or_default()),
                Format::Text | Format::Github => out.line(render::event(&event)),
            }
        }
        if out.is_closed() || buffer.len() > LONGEST {
            return;
        }
    }
}

/// Takes the events that have arrived whole out of the buffer.
fn complete(buffer: &mut Vec<u8>) -> Vec<StoredEvent> {
    let mut events = Vec::new();
    while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
        let block: Vec<u8> = buffer.drain(..end + 2).collect();
        let text = String::from_utf8_lossy(&block);
        let data: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("data:"))
            .map(|data| data.strip_prefix(' ').unwrap_or(data))
            .collect();
        events.extend(serde_json::from_str(&data.join("\n")).ok());
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let event = |id: u64| {
            let data = serde_json::json!({"id": id, "at": "2026-01-02T10:00:00Z", "service": "shop", "rollout": null,
                "event": "tick", "detail": {}, "numbers": null, "caller": null, "phase": "Paused", "step": 1, "weight": 5,
                "message": "a\n\nb"});
            format!("id: {id}\nevent: tick\ndata: {data}\n\n")
        };
        let stream = format!("retry: 2000\n: serin\n\n{}: keep-alive\n\n{}", event(7), event(8));
        for size in [1, 3, 50, 10_000] {
            let mut buffer = Vec::new();
            let mut ids = Vec::new();
            for piece in stream.as_bytes().chunks(size) {
                buffer.extend_from_slice(piece);
                ids.extend(complete(&mut buffer).iter().map(|event| event.id));
            }
            assert_eq!(ids, [7, 8], "{size}");
        }
    }
}
