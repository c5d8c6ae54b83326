//! Addresses of servers, which a run writes down.

/// Why an address may not be used: it holds what could be a key, and whatever names the address would tell it.
pub fn secret_in(url: &str) -> Option<&'static str> {
    if url.contains('@') {
        return Some("must hold no user or password, for it is written down: leave out what is before the `@`");
    }
    let query = "must end with its path, for it is written down and a query may hold a key: leave out what begins with `?` or `#`";
    url.contains(['?', '#']).then_some(query)
}
