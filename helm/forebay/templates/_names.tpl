{{/*
Names and labels. A template that takes a tier is called with (dict "root" $ "tier" "frontend").
*/}}

{{/* Prefix of all names; leaves room for "-frontend" within the 63 characters of a DNS label. */}}
{{- define "forebay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of a tier's Deployment, Service, budget and service account. */}}
{{- define "forebay.name" -}}
{{- printf "%s-%s" (include "forebay.fullname" .root) .tier -}}
{{- end -}}

{{/* What finds a tier's pods; must never change for a release. */}}
{{- define "forebay.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .tier }}
{{- end -}}

{{/* Labels of a tier's pods. The chart's version is not among them: a new chart alone is no reason to load weights again. */}}
{{- define "forebay.podLabels" -}}
{{ include "forebay.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: {{ .root.Chart.Name }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{- define "forebay.labels" -}}
{{ include "forebay.podLabels" . }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "forebay.serviceAccountName" -}}
{{- $account := (index .root.Values .tier).serviceAccount -}}
{{- if $account.create -}}
{{- default (include "forebay.name" .) $account.name -}}
{{- else -}}
{{- default "default" $account.name -}}
{{- end -}}
{{- end -}}

{{- define "forebay.image" -}}
{{- $image := (index .root.Values .tier).image -}}
{{- $name := $image.repository -}}
{{- with .root.Values.image.registry -}}
{{- $name = printf "%s/%s" (trimSuffix "/" .) $name -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* What the processes are told to serve: a folder of the claim, or a hub id. */}}
{{- define "forebay.model" -}}
{{- $model := .Values.model -}}
{{- if $model.existingClaim -}}
{{- printf "/model/%s" $model.path | trimSuffix "/" -}}
{{- else -}}
{{- required "set model.id, or model.existingClaim" $model.id -}}
{{- end -}}
{{- end -}}

{{/* The executors' addresses: one per pod that is ready, as the Service is headless. */}}
{{- define "forebay.executors" -}}
{{- $name := include "forebay.name" (dict "root" . "tier" "executor") -}}
{{- printf "dns:///%s.%s.svc:%d" $name .Release.Namespace (int .Values.executor.port) -}}
{{- end -}}
