//! All rules of a configuration, compiled once and asked once per request.
//!
//! Precedence is the Gateway API's: host (exact, then the longest suffix, then any), exact path, longest prefix, regex,
//! `/` or no path, method, most headers and cookies, most query parameters, a named listener, the earlier rule. A more
//! specific host whose other conditions fail gives way to a less specific one.

use super::{
    matching::{HostMatch, PathMatch, RequestView, RouteMatch},
    path::plain_path,
};
use regex::Regex;
use std::{cmp::Reverse, collections::HashMap};

/// Where some requests go.
#[derive(Debug, Clone)]
pub struct Rule<T> {
    /// Alternatives; none at all means every request.
    pub matches: Vec<RouteMatch>,
    /// Where they go.
    pub target: T,
}

/// Every rule, indexed by host and path.
#[derive(Debug)]
pub struct Router<T> {
    targets: Vec<T>,
    /// The only rule matches everything: no index is asked.
    single: bool,
    exact: HashMap<Box<[u8]>, Paths>,
    suffix: HashMap<Box<[u8]>, Paths>,
    any: Paths,
}

/// The rules of one host, by path.
#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<Box<str>, Vec<Entry>>,
    /// By prefix without its trailing `/`.
    prefix: HashMap<Box<str>, Vec<Entry>>,
    longest_prefix: usize,
    regex: Vec<(Regex, Entry)>,
    /// `/` and no path at all.
    root: Vec<Entry>,
}

/// One alternative of one rule. Lists of entries are kept in order of precedence.
#[derive(Debug)]
struct Entry {
    conditions: RouteMatch,
    target: usize,
}

impl Entry {
    /// Smaller is more specific; equal keys keep the order of the rules (sorting is stable).
    fn precedence(&self) -> impl Ord + use<> {
        let c = &self.conditions;
        (
            c.method.is_none(),
            Reverse(c.headers.len() + c.cookies.len()),
            Reverse(c.query.len()),
            c.listener.is_none(),
        )
    }
}

/// Longer hosts than this are not in any index (DNS allows 253 bytes).
const MAX_HOST: usize = 255;

impl<T> Router<T> {
    /// Compiles rules; their order decides only between equally specific ones.
    pub fn new(rules: impl IntoIterator<Item = Rule<T>>) -> Router<T> {
        let mut router = Router {
            targets: Vec::new(),
            single: false,
            exact: HashMap::new(),
            suffix: HashMap::new(),
            any: Paths::default(),
        };
        let mut everything = false;
        for rule in rules {
            let target = router.targets.len();
            router.targets.push(rule.target);
            everything |= rule.matches.is_empty() || rule.matches.iter().any(RouteMatch::is_everything);
            let matches = if rule.matches.is_empty() {
                vec![RouteMatch::default()]
            } else {
                rule.matches
            };
            for conditions in matches {
                router.add(Entry { conditions, target });
            }
        }
        router.single = router.targets.len() == 1 && everything;
        let hosts = router.exact.values_mut().chain(router.suffix.values_mut());
        hosts
            .chain(std::iter::once(&mut router.any))
            .for_each(Paths::sort);
        router
    }

    fn add(&mut self, entry: Entry) {
        let lower = |host: &str| host.to_ascii_lowercase().into_bytes().into_boxed_slice();
        let paths = match &entry.conditions.host {
            None => &mut self.any,
            Some(HostMatch::Exact(host)) => self.exact.entry(lower(host)).or_default(),
            Some(HostMatch::Suffix(host)) => self.suffix.entry(lower(host)).or_default(),
        };
        paths.add(entry);
    }

    /// The target of the most specific rule that holds for a request.
    pub fn find(&self, request: &RequestView<'_>) -> Option<&T> {
        self.position(request).and_then(|index| self.targets.get(index))
    }

    /// The place of that target among [`Router::targets`].
    pub fn position(&self, request: &RequestView<'_>) -> Option<usize> {
        if self.single {
            return Some(0);
        }
        let path = plain_path(request.path);
        let request = &RequestView {
            path: &path,
            ..*request
        };
        if !(self.exact.is_empty() && self.suffix.is_empty()) {
            let mut buffer = [0u8; MAX_HOST];
            if let Some(host) = buffer.get_mut(..request.host.len()) {
                host.copy_from_slice(request.host.as_bytes());
                host.make_ascii_lowercase();
                if let Some(found) = self.find_by_host(host, request) {
                    return Some(found);
                }
            }
        }
        self.any.find(request)
    }

    fn find_by_host(&self, host: &[u8], request: &RequestView<'_>) -> Option<usize> {
        let host = host.strip_suffix(b".").unwrap_or(host);
        let exact = self.exact.get(host).and_then(|paths| paths.find(request));
        if exact.is_some() || self.suffix.is_empty() {
            return exact;
        }
        let mut rest = host;
        while let Some(dot) = rest.iter().position(|byte| *byte == b'.') {
            let precedes = dot > 0;
            rest = &rest[dot + 1..];
            if let Some(found) = self
                .suffix
                .get(rest)
                .filter(|_| precedes)
                .and_then(|p| p.find(request))
            {
                return Some(found);
            }
        }
        None
    }

    /// Every target, in the order of the rules.
    pub fn targets(&self) -> &[T] {
        &self.targets
    }
}

impl Paths {
    fn add(&mut self, entry: Entry) {
        match entry.conditions.path.clone() {
            None => self.root.push(entry),
            Some(PathMatch::Exact(path)) => {
                let path = plain_path(&path).into();
                self.exact.entry(path).or_default().push(entry);
            }
            Some(PathMatch::Regex(regex)) => self.regex.push((regex, entry)),
            Some(PathMatch::Prefix(prefix)) => match plain_path(&prefix).trim_end_matches('/') {
                "" => self.root.push(entry),
                prefix => {
                    self.longest_prefix = self.longest_prefix.max(prefix.len());
                    self.prefix.entry(prefix.into()).or_default().push(entry);
                }
            },
        }
    }

    fn sort(&mut self) {
        for entries in self.exact.values_mut().chain(self.prefix.values_mut()) {
            entries.sort_by_key(Entry::precedence);
        }
        self.root.sort_by_key(Entry::precedence);
        self.regex.sort_by_key(|(_, entry)| entry.precedence());
    }

    fn find(&self, request: &RequestView<'_>) -> Option<usize> {
        let first = |entries: &[Entry]| {
            let entry = entries
                .iter()
                .find(|entry| entry.conditions.rest_holds(request))?;
            Some(entry.target)
        };
        if let Some(found) = self.exact.get(request.path).and_then(|entries| first(entries)) {
            return Some(found);
        }
        if self.longest_prefix > 0 {
            // Whole segments only: a prefix can end where the path ends and before each `/`, longest first. Cuts beyond
            // the longest prefix are not looked up, so a path of a thousand slashes costs no thousand look-ups.
            let path = request.path;
            let mut cut = path.len();
            loop {
                if cut <= self.longest_prefix
                    && let Some(found) = self.prefix.get(&path[..cut]).and_then(|entries| first(entries))
                {
                    return Some(found);
                }
                let window = cut.min(self.longest_prefix + 1);
                match path.as_bytes()[..window].iter().rposition(|byte| *byte == b'/') {
                    Some(slash) if slash > 0 => cut = slash,
                    Some(_) | None => break,
                }
            }
        }
        let by_regex = self
            .regex
            .iter()
            .find(|(regex, entry)| regex.is_match(request.path) && entry.conditions.rest_holds(request));
        if let Some((_, entry)) = by_regex {
            return Some(entry.target);
        }
        first(&self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FieldMatch, ValueMatch};
    use super::*;
    use http::{HeaderMap, HeaderName, HeaderValue, Method};

    fn host(text: &str) -> RouteMatch {
        let host = match text.strip_prefix("*.") {
            Some(suffix) => HostMatch::Suffix(suffix.to_owned()),
            None => HostMatch::Exact(text.to_owned()),
        };
        RouteMatch {
            host: Some(host),
            ..RouteMatch::default()
        }
    }

    fn prefix(text: &str) -> RouteMatch {
        RouteMatch {
            path: Some(PathMatch::Prefix(text.to_owned())),
            ..RouteMatch::default()
        }
    }

    fn exact(text: &str) -> RouteMatch {
        RouteMatch {
            path: Some(PathMatch::Exact(text.to_owned())),
            ..RouteMatch::default()
        }
    }

    fn regex(text: &str) -> RouteMatch {
        RouteMatch {
            path: Some(PathMatch::Regex(Regex::new(&format!("^(?:{text})$")).unwrap())),
            ..RouteMatch::default()
        }
    }

    fn field<N>(name: N, value: &str) -> FieldMatch<N> {
        FieldMatch {
            name,
            value: ValueMatch::Exact(value.to_owned()),
        }
    }

    fn router(rules: Vec<(&'static str, Vec<RouteMatch>)>) -> Router<&'static str> {
        Router::new(
            rules
                .into_iter()
                .map(|(target, matches)| Rule { matches, target }),
        )
    }

    fn find(router: &Router<&'static str>, host: &str, path: &str) -> Option<&'static str> {
        find_with(router, host, path, &HeaderMap::new(), &Method::GET)
    }

    fn find_with(
        router: &Router<&'static str>,
        host: &str,
        path: &str,
        headers: &HeaderMap,
        method: &Method,
    ) -> Option<&'static str> {
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path, None),
        };
        router
            .find(&RequestView {
                listener: 0,
                host,
                path,
                query,
                method,
                headers,
            })
            .copied()
    }

    #[test]
    fn one_service_without_matches_takes_everything() {
        let router = router(vec![("all", vec![])]);
        assert_eq!(find(&router, "anything", "/x?y"), Some("all"));
        assert!(router.single);
    }

    #[test]
    fn the_more_specific_host_wins_and_gives_way_when_its_paths_do_not_fit() {
        let both = |h: &str, p: &str| RouteMatch {
            path: prefix(p).path,
            ..host(h)
        };
        let router = router(vec![
            ("any", vec![]),
            ("wide", vec![host("*.example.com")]),
            ("narrow", vec![host("*.eu.example.com")]),
            ("exact", vec![both("a.eu.example.com", "/only")]),
        ]);
        for (host, path, expected) in [
            ("a.eu.example.com", "/only/this", "exact"),
            ("A.EU.Example.COM", "/only", "exact"),
            ("a.eu.example.com.", "/only", "exact"),
            ("a.eu.example.com", "/other", "narrow"),
            ("b.eu.example.com", "/", "narrow"),
            ("x.y.example.com", "/", "wide"),
            ("example.com", "/", "any"),
            (".example.com", "/", "any"),
            ("badexample.com", "/", "any"),
            ("", "/", "any"),
        ] {
            assert_eq!(find(&router, host, path), Some(expected), "{host}{path}");
        }
        let long = "a.".repeat(300) + "example.com";
        assert_eq!(find(&router, &long, "/"), Some("any"));
    }

    #[test]
    fn an_exact_path_beats_the_longest_prefix_beats_a_regex_beats_the_root() {
        let router = router(vec![
            ("root", vec![prefix("/")]),
            ("regex", vec![regex("/v[0-9]+/.*")]),
            ("api", vec![prefix("/v1/api/")]),
            ("v1", vec![prefix("/v1/a")]),
            ("exact", vec![exact("/v1/api/x")]),
        ]);
        for (path, expected) in [
            ("/v1/api/x", "exact"),
            ("/v1/api/x/", "api"),
            ("/v1/api", "api"),
            ("/v1/api/", "api"),
            ("/v1/apix", "regex"),
            ("/v1/a/b", "v1"),
            ("/v12/z", "regex"),
            ("/v/z", "root"),
            ("/", "root"),
            ("*", "root"),
            ("//v1/api", "root"),
        ] {
            assert_eq!(find(&router, "h", path), Some(expected), "{path}");
        }
    }

    #[test]
    fn a_path_of_slashes_is_no_work_and_no_panic() {
        let router = router(vec![("a", vec![prefix("/é/b")])]);
        assert_eq!(find(&router, "h", &"/".repeat(60_000)), None);
        assert_eq!(find(&router, "h", "/é/b/ü"), Some("a"));
        assert_eq!(find(&router, "h", "/é/bü"), None);
    }

    #[test]
    fn ties_go_by_method_then_headers_then_query_then_listener_then_order() {
        let x = HeaderName::from_static("x-a");
        let mut one = RouteMatch::default();
        one.headers.push(field(x.clone(), "1"));
        let mut two = one.clone();
        two.cookies.push(field("sid".to_owned(), "7"));
        let mut query = RouteMatch::default();
        query.query.push(field("q".to_owned(), "1"));
        let method = RouteMatch {
            method: Some(Method::POST),
            ..RouteMatch::default()
        };
        let listener = RouteMatch {
            listener: Some(0),
            ..RouteMatch::default()
        };
        let other = RouteMatch {
            listener: Some(1),
            ..RouteMatch::default()
        };
        let router = router(vec![
            ("first", vec![]),
            ("second", vec![]),
            ("other", vec![other]),
            ("listener", vec![listener]),
            ("query", vec![query]),
            ("one", vec![one]),
            ("two", vec![two]),
            ("method", vec![method]),
        ]);
        let mut headers = HeaderMap::new();
        assert_eq!(find(&router, "h", "/"), Some("listener"));
        assert_eq!(find(&router, "h", "/?q=1"), Some("query"));
        headers.append(&x, HeaderValue::from_static("0"));
        headers.append(&x, HeaderValue::from_static("1"));
        let get = |headers: &HeaderMap| find_with(&router, "h", "/?q=1", headers, &Method::GET);
        assert_eq!(get(&headers), Some("one"));
        headers.append("cookie", HeaderValue::from_static("sid=7"));
        assert_eq!(get(&headers), Some("two"));
        assert_eq!(
            find_with(&router, "h", "/?q=1", &headers, &Method::POST),
            Some("method")
        );
    }

    #[test]
    fn the_earlier_of_two_equal_rules_wins() {
        let router = router(vec![
            ("first", vec![prefix("/a")]),
            ("second", vec![prefix("/a/")]),
        ]);
        assert_eq!(find(&router, "h", "/a"), Some("first"));
    }

    #[test]
    fn alternatives_are_or_and_conditions_are_and() {
        let both = RouteMatch {
            method: Some(Method::PUT),
            ..prefix("/a")
        };
        let router = router(vec![("svc", vec![both, exact("/b")])]);
        assert_eq!(find(&router, "h", "/b"), Some("svc"));
        assert_eq!(find(&router, "h", "/a"), None);
        assert_eq!(
            find_with(&router, "h", "/a", &HeaderMap::new(), &Method::PUT),
            Some("svc")
        );
    }

    #[test]
    fn a_thousand_hosts_are_told_apart() {
        let rules = (0..1000usize).map(|n| Rule {
            matches: vec![host(&format!("s{n}.test"))],
            target: n,
        });
        let router = Router::new(rules);
        let headers = HeaderMap::new();
        for n in 0..1000usize {
            let name = format!("S{n}.test");
            let view = RequestView {
                listener: 0,
                host: &name,
                path: "/",
                query: None,
                method: &Method::GET,
                headers: &headers,
            };
            assert_eq!(router.find(&view), Some(&n));
        }
    }

    /// The rule the index must agree with: try every alternative, keep the most specific.
    fn slow(rules: &[Vec<RouteMatch>], request: &RequestView<'_>) -> Option<usize> {
        let mut best = None;
        for (index, matches) in rules.iter().enumerate() {
            for conditions in matches {
                let host = match &conditions.host {
                    None => Some((2, 0)),
                    Some(HostMatch::Exact(host)) => (host == request.host).then_some((0, 0)),
                    Some(HostMatch::Suffix(suffix)) => request
                        .host
                        .strip_suffix(suffix.as_str())
                        .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
                        .then_some((1, usize::MAX - suffix.len())),
                };
                let path = match &conditions.path {
                    None => Some((3, 0)),
                    Some(PathMatch::Exact(path)) => (path == request.path).then_some((0, 0)),
                    Some(PathMatch::Prefix(prefix)) => {
                        let prefix = prefix.trim_end_matches('/');
                        let rest = request.path.strip_prefix(prefix);
                        let kind = if prefix.is_empty() { 3 } else { 1 };
                        rest.is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('/'))
                            .then_some((kind, usize::MAX - prefix.len()))
                            .map(|(kind, length)| if kind == 3 { (3, 0) } else { (kind, length) })
                    }
                    Some(PathMatch::Regex(regex)) => regex.is_match(request.path).then_some((2, 0)),
                };
                if let (Some(host), Some(path), true) = (host, path, conditions.rest_holds(request)) {
                    let key = (host, path, conditions.method.is_none(), index);
                    if best.as_ref().is_none_or(|best| key < *best) {
                        best = Some(key);
                    }
                }
            }
        }
        best.map(|(_, _, _, index)| index)
    }

    proptest::proptest! {
        #[test]
        fn the_index_agrees_with_trying_every_rule(
            rules in proptest::collection::vec((0usize..5, 0usize..8, proptest::bool::ANY), 1..12),
            asked in proptest::collection::vec((0usize..6, 0usize..9), 1..10),
        ) {
            let hosts = ["", "a.b", "*.b", "*.a.b", "c.a.b"];
            let rules: Vec<Vec<RouteMatch>> = rules.into_iter().map(|(h, p, post)| {
                let paths = [RouteMatch::default(), prefix("/"), prefix("/x"), prefix("/x/y/"), prefix("/x/yy"),
                    exact("/x"), exact("/x/y"), regex("/x.*")];
                vec![RouteMatch {
                    host: (h > 0).then(|| host(hosts[h]).host).flatten(),
                    path: paths[p].path.clone(),
                    method: post.then_some(Method::POST),
                    ..RouteMatch::default()
                }]
            }).collect();
            let router = Router::new(rules.iter().cloned().enumerate().map(|(target, matches)| Rule { matches, target }));
            let headers = HeaderMap::new();
            for (h, p) in asked {
                for method in [Method::GET, Method::POST] {
                    let view = RequestView {
                        listener: 0,
                        host: ["a.b", "x.b", "c.a.b", "d.a.b", "b", ""][h],
                        path: ["/", "/x", "/x/", "/x/y", "/x/y/z", "/x/yy", "/xx", "/z", "*"][p],
                        query: None,
                        method: &method,
                        headers: &headers,
                    };
                    proptest::prop_assert_eq!(router.find(&view).copied(), slow(&rules, &view), "{:?}", view);
                }
            }
        }
    }
}
