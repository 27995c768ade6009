//! Who calls: the caller, and what a handler may demand of them.
//!
//! A handler says in its signature who may call it: [`Caller`] (anybody who is logged in), or one of the
//! extractors below for a role. They read what the authentication layer put into the request; where that is
//! nothing, the answer is 401, and where the role does not fit, 403.
use axum::{extract::FromRequestParts, http::request::Parts};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::platform::http::problem::{Problem, UNAUTHENTICATED};

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Uses the service for themselves, and sees what is theirs.
    Customer,
    /// Sees everybody's records, and acts on customers' behalf.
    Support,
    /// Reads the audit trail.
    Auditor,
    /// Keeps the service; everything but what customers do for themselves.
    Admin,
}

impl Role {
    /// As it is written in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Support => "support",
            Self::Auditor => "auditor",
            Self::Admin => "admin",
        }
    }

    /// Reads what [`Self::as_str`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Customer, Self::Support, Self::Auditor, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
    }
}

/// Somebody who is logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The user.
    pub user_id: Uuid,
    /// What they may do.
    pub role: Role,
    /// The session that says so.
    pub session_id: Uuid,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        parts.extensions.get().copied().ok_or_else(|| Problem::new(UNAUTHENTICATED))
    }
}

/// Declares an extractor that lets some roles through.
macro_rules! demands {
    ($($(#[doc = $doc:literal])* $Name:ident($($role:ident)|+);)*) => {$(
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $Name(pub Caller);

        impl<S: Sync> FromRequestParts<S> for $Name {
            type Rejection = Problem;

            async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
                let caller = Caller::from_request_parts(parts, state).await?;
                if matches!(caller.role, $(Role::$role)|+) { Ok(Self(caller)) } else { Err(Problem::forbidden()) }
            }
        }
    )*};
}

demands! {
    /// A customer.
    Customer(Customer);
    /// A customer, or support on their behalf.
    CustomerOrSupport(Customer | Support);
    /// Whoever may look at customers' records: customers at their own, support and admins at all.
    OwnerOrStaff(Customer | Support | Admin);
    /// Support or an admin.
    Staff(Support | Admin);
    /// Whoever may read the audit trail.
    AuditReader(Auditor | Admin);
    /// An admin.
    Admin(Admin);
}

impl OwnerOrStaff {
    /// The customer whose records alone may be seen; `None` for staff, who may see all.
    pub fn only_own(&self) -> Option<Uuid> {
        (self.0.role == Role::Customer).then_some(self.0.user_id)
    }
}
