//! The caller of a request, and the extractors that require a role.
//!
//! A handler's signature states which users may call it. [`Caller`] accepts every authenticated user. An extractor that
//! is declared with [`callers!`](crate::callers) accepts only the listed roles. The extractors read the user that the
//! authentication layer stored in the request. Without a user the response is 401; with another role, 403.
use axum::{extract::FromRequestParts, http::request::Parts};
use uuid::Uuid;

use crate::http::problem::{Problem, UNAUTHENTICATED};

/// An authenticated user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The user's id.
    pub user_id: Uuid,
    /// The name of the user's role, as written in SQL and JSON.
    pub role: &'static str,
    /// The id of the session that authenticated the request.
    pub session_id: Uuid,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        parts.extensions.get().copied().ok_or_else(|| Problem::new(UNAUTHENTICATED))
    }
}

/// Declares extractors that accept only callers with one of the listed roles: `Name(role, role);`. A role is an
/// expression of type `&str`.
#[macro_export]
macro_rules! callers {
    ($($(#[doc = $doc:literal])* $Name:ident($($role:expr),+);)*) => {$(
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $Name(pub $crate::identity::Caller);

        impl<S: Sync> axum::extract::FromRequestParts<S> for $Name {
            type Rejection = $crate::http::problem::Problem;

            async fn from_request_parts(
                parts: &mut axum::http::request::Parts,
                state: &S,
            ) -> Result<Self, Self::Rejection> {
                let caller = $crate::identity::Caller::from_request_parts(parts, state).await?;
                if [$($role),+].contains(&caller.role) {
                    Ok(Self(caller))
                } else {
                    Err($crate::http::problem::Problem::forbidden())
                }
            }
        }
    )*};
}
