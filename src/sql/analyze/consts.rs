//! What may be the value of a hospital key: literals and parameters, and casts of those that keep what
//! they say.
//!
//! A literal's type is open until something casts it; a parameter's is what Parse declared, else
//! what the first cast says, else that of the column it is compared with. Only uuid, text and varchar (with no
//! length) and arrays of them count: any other type might change the value.

use pg_raw_parse::nodes;

use super::expr::is_catalog_name;
use crate::sql::execute::OTHER_TYPE;
use crate::sql::{KeySource, ParamKind};

/// A literal or a parameter, as some type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Const {
    place: Place,
    of: Type,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Literal(u16),
    /// With what its bytes are, once that is settled.
    Param(u16, Option<ParamKind>),
}

/// Types that keep what a key says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Open,
    Uuid,
    Text,
    UuidArray,
    TextArray,
}

impl Type {
    fn kind(self) -> Option<ParamKind> {
        match self {
            Self::Open => None,
            Self::Uuid | Self::UuidArray => Some(ParamKind::Uuid),
            Self::Text | Self::TextArray => Some(ParamKind::Text),
        }
    }
}

impl Const {
    /// String literal `slot`.
    pub(super) fn literal(slot: u16) -> Self {
        Self { place: Place::Literal(slot), of: Type::Open }
    }

    /// Parameter `$number` of a statement whose Parse declared `types`.
    pub(super) fn param(number: i32, types: &[u32]) -> Option<Self> {
        let number = u16::try_from(number).ok().filter(|number| *number > 0)?;
        let of = match types.get(usize::from(number) - 1).copied().unwrap_or(0) {
            0 => Type::Open,
            2950 => Type::Uuid,
            25 | 1043 => Type::Text,
            2951 => Type::UuidArray,
            1009 | 1015 => Type::TextArray,
            _ => return None,
        };
        Some(Self { place: Place::Param(number, of.kind()), of })
    }

    /// The same value cast to `target`.
    pub(super) fn cast(self, target: Type) -> Option<Self> {
        let is_array = |of| matches!(of, Type::UuidArray | Type::TextArray);
        if self.of != Type::Open && is_array(self.of) != is_array(target) {
            return None;
        }
        let place = match self.place {
            Place::Param(number, None) => Place::Param(number, target.kind()),
            settled => settled,
        };
        Some(Self { place, of: target })
    }

    /// Where the key stands, if this is compared with a uuid.
    pub(super) fn key(self) -> Option<KeySource> {
        match (self.place, self.of) {
            (_, Type::UuidArray | Type::TextArray) => None,
            (Place::Literal(slot), _) => Some(KeySource::Slot(slot)),
            (Place::Param(number, kind), _) => {
                Some(KeySource::Param(number, kind.unwrap_or(ParamKind::Uuid)))
            }
        }
    }

    /// Where the keys stand, if this is an array of uuid.
    pub(super) fn keys(self) -> Option<KeySource> {
        match (self.place, self.of) {
            (_, Type::Uuid | Type::Text) => None,
            (Place::Literal(slot), _) => Some(KeySource::SlotArray(slot)),
            (Place::Param(number, kind), _) => {
                Some(KeySource::ParamArray(number, kind.unwrap_or(ParamKind::Uuid)))
            }
        }
    }

    /// The literal, if it is one.
    pub(super) fn slot(self) -> Option<u16> {
        match self.place {
            Place::Literal(slot) => Some(slot),
            Place::Param(..) => None,
        }
    }

    /// Whether it was said to be a uuid, so that it is one wherever it stands.
    pub(super) fn is_uuid(self) -> bool {
        self.of == Type::Uuid
    }

    /// Whether its type is text, or an array of text.
    pub(super) fn is_text(self) -> bool {
        matches!(self.of, Type::Text | Type::TextArray)
    }
}

/// The OID of a type that a parameter is declared to have, as far as keys go.
pub(super) fn type_oid(name: &nodes::TypeName) -> u32 {
    match named_type(name) {
        Some(Type::Uuid) => 2950,
        Some(Type::Text) => 25,
        Some(Type::UuidArray) => 2951,
        Some(Type::TextArray) => 1009,
        Some(Type::Open) | None => OTHER_TYPE,
    }
}

/// The type that a cast names, if it keeps what a key says.
pub(super) fn named_type(name: &nodes::TypeName) -> Option<Type> {
    if name.setof || name.pct_type || !name.typmods().is_empty() {
        return None;
    }
    let is_array = match name.array_bounds().len() {
        0 => false,
        1 => true,
        _ => return None,
    };
    let names = name.names();
    let mut parts = names.iter().map(|part| part.sval());
    let last = match (parts.next()??, parts.next()) {
        (last, None) => last,
        (schema, Some(last)) if is_catalog_name(schema) && parts.next().is_none() => last?,
        _ => return None,
    };
    match (last, is_array) {
        ("uuid", false) => Some(Type::Uuid),
        ("uuid", true) => Some(Type::UuidArray),
        ("text" | "varchar", false) => Some(Type::Text),
        ("text" | "varchar", true) => Some(Type::TextArray),
        ("_uuid", false) => Some(Type::UuidArray),
        _ => None,
    }
}
